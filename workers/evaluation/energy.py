"""The energy that the machine's GPUs have used, where they report it."""

from __future__ import annotations

import pynvml


def gpu_joules() -> float | None:
    """Since the driver was loaded, all GPUs together; None without a GPU that counts (Volta and later do)."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return sum(int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in handles) / 1000
    except pynvml.NVMLError:  # a GPU that does not report it
        return None
    finally:
        pynvml.nvmlShutdown()
