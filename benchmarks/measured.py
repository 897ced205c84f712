"""What benchmarks share: work done in a fresh process, with its peak of resident memory and its seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Benchmarks are run as files: what they share with the tests is found from the repository's root.
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

HEAD = """
import json, re, sys, time
arguments = json.loads(sys.argv[1])
"""
TAIL = """
# Not getrusage's figure, which begins with what the starting process had.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
print()
print(json.dumps({"seconds": time.perf_counter() - started, "peak_rss_bytes": peak}))
"""


def run_measured(code: str, arguments: dict[str, Any]) -> dict[str, float]:
    """Runs `code` in a fresh interpreter. It finds `arguments` there and sets `started` when its work begins."""
    with tempfile.NamedTemporaryFile() as errors:
        done = subprocess.run(
            [sys.executable, "-c", HEAD + code + TAIL, json.dumps(arguments)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        if done.returncode:
            raise RuntimeError(Path(errors.name).read_text()[-2000:])
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


# The method class alone, without job, proof or server.
BITMILL = """
from pathlib import Path
from app.domain.quantization.catalog import parse_method
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.run import RecordingRun
from workers.quantization.registry import load_method

source = inspect_checkpoint(Path(arguments["source"]))
target = Path(arguments["target"])
target.mkdir(parents=True)
spec, params = parse_method(arguments["method"])
method = load_method(spec.name)
run = RecordingRun(source, Path(arguments["stages"]), arguments["max_shard_bytes"])
started = time.perf_counter()
method.quantize(source, target, params, run)
"""
