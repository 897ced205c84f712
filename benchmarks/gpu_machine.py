"""What `benchmarks/gpu.py` asks of the machine itself, in processes of their own: this one holds no GPU."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIST_VERSIONS = """
import importlib.metadata, json, torch
wanted = ["torch", "transformers", "bitsandbytes", "gptqmodel", "compressed-tensors", "accelerate", "peft", "torchao",
          "llama-cpp-python", "xllamacpp"]
there = {each.metadata["Name"].lower().replace("_", "-"): each.version for each in importlib.metadata.distributions()}
card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
print(json.dumps({"packages": {name: there.get(name) for name in wanted}, "cuda": torch.version.cuda, "card": card}))
"""
# All but a quarter of a gigabyte, until its input ends.
FILL = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
kept = torch.empty(free - 2**28, dtype=torch.uint8, device="cuda")
print("full", flush=True)
sys.stdin.read()
"""


def versions() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", LIST_VERSIONS], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found |= {"python": platform.python_version(), "driver": None}
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        found["driver"] = subprocess.run(asked, stdout=subprocess.PIPE, text=True).stdout.strip()
    return found


@contextmanager
def filled_gpu() -> Iterator[None]:
    """A process of somebody else's has nearly all of the GPU's memory."""
    with subprocess.Popen([sys.executable, "-c", FILL], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == b"full"
            yield
        finally:
            process.kill()


@contextmanager
def another_worker(data_folder: Path) -> Iterator[None]:
    """A second worker of the installation in this folder."""
    command = [sys.executable, "-m", "app.cli.main", "worker"]
    with (data_folder / "logs" / "second.log").open("ab") as log:
        environment = os.environ | {"BITMILL_DATA_DIR": str(data_folder)}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)
