"""The memory of the machine that serves: its GPUs' where it has any, else its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import pynvml

from app.domain.hardware import Device


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that models may use, in all and now."""

    total_bytes: int
    available_bytes: int


class Machine:
    """Asked anew each time: other programs use the same memory."""

    def __init__(self, gpu_share: float = 1.0) -> None:
        """`gpu_share` of a GPU's memory may be filled; drivers and fragmentation want the rest."""
        self.gpu_share = gpu_share
        with _nvml() as count:
            self.device = Device.GPU if count else Device.CPU

    def memory(self) -> Memory:
        if self.device is Device.CPU:
            own = psutil.virtual_memory()
            return Memory(own.total, own.available)
        with _nvml() as count:
            found = [pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count)]
        total = sum(int(gpu.total * self.gpu_share) for gpu in found)
        return Memory(total, total - sum(int(gpu.used) for gpu in found))

    def used_by(self, pids: set[int]) -> int | None:
        """GPU memory that these processes hold; None on a machine without one."""
        if self.device is Device.CPU:
            return None
        with _nvml() as count:
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
            running = [each for handle in handles for each in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        return sum(int(each.usedGpuMemory or 0) for each in running if each.pid in pids)


@contextmanager
def _nvml() -> Iterator[int]:
    """NVIDIA's management library, opened; yields the number of GPUs, 0 where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield 0
        return
    try:
        yield int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
