"""The probe's child: looks at the hardware and asks every method whether it can run here."""

from __future__ import annotations

import json
import platform
import socket
import sys
from pathlib import Path

import psutil

from app.domain.errors import BitmillError
from app.domain.hardware import Gpu, Hardware
from workers.probe import Probe
from workers.quantization.registry import REGISTRY, load_method


def probe() -> Probe:
    return Probe(hardware=find_hardware(), methods=check_methods())


def find_hardware() -> Hardware:
    return Hardware(
        hostname=socket.gethostname(),
        processor=_processor_name(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        gpus=_find_gpus(),
    )


def check_methods() -> dict[str, str | None]:
    """Asks each method whether it can run in this environment."""
    found: dict[str, str | None] = {}
    for name in REGISTRY:
        try:
            load_method(name).check_environment()
            found[name] = None
        except (BitmillError, ImportError, OSError) as error:
            found[name] = str(error)
    return found


def _find_gpus() -> tuple[Gpu, ...]:
    try:
        import torch
    except ImportError:
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        found.append(Gpu(name=properties.name, memory_bytes=properties.total_memory, compute_capability=capability))
    return tuple(found)


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(probe().model_dump(mode="json")) + "\n")
