"""The probe's child: looks at the hardware and asks every method whether it can run here."""

from __future__ import annotations

import json
import platform
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psutil

from app.domain.errors import BitmillError
from app.domain.fine_tuning import Adapter
from app.domain.hardware import Gpu, Hardware
from workers.probe import Probe
from workers.quantization.registry import REGISTRY, load_method

# What each way of training stands on.
ADAPTER_MODULES: Final[dict[Adapter, tuple[str, ...]]] = {
    Adapter.LORA: ("torch", "transformers", "accelerate", "peft"),
    Adapter.QLORA: ("torch", "transformers", "accelerate", "peft", "bitsandbytes"),
    Adapter.FULL: ("torch", "transformers", "accelerate"),
    Adapter.QAT: ("torch", "transformers", "accelerate", "compressed_tensors"),
}


def probe() -> Probe:
    return Probe(hardware=find_hardware(), methods=check_adapters() | check_methods())


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


def check_adapters() -> dict[str, str | None]:
    """The same for each way of training."""
    found: dict[str, str | None] = {}
    for adapter, modules in ADAPTER_MODULES.items():
        missing = [module for module in modules if find_spec(module) is None]
        reason = f"it needs {', '.join(missing)}; install with: pip install 'bitmill[worker]'"
        found[adapter.value] = reason if missing else None
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
