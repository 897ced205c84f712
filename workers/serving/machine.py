"""The memory of the machine that serves: its GPUs' where it has any, else its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pynvml

from app.domain.hardware import Device
from workers.devices import opened_cards

CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that models may use, in all and now."""

    total_bytes: int
    available_bytes: int


class Machine:
    """Asked anew each time: other programs use the same memory."""

    def __init__(self, gpu_share: float = 1.0, *, cgroup: Path | None = None) -> None:
        """`gpu_share` of a GPU's memory may be filled; drivers and fragmentation want the rest.

        `cgroup` is this process's control group's folder, found by default.
        """
        self.gpu_share = gpu_share
        self.cgroup = cgroup or own_cgroup()
        with opened_cards() as cards:
            self.device = Device.GPU if cards else Device.CPU

    def memory(self) -> Memory:
        if self.device is Device.CPU:
            own = psutil.virtual_memory()
            limits = [Memory(own.total, own.available), *_container_limits(self.cgroup)]
            return Memory(min(one.total_bytes for one in limits), min(one.available_bytes for one in limits))
        with opened_cards() as cards:
            found = [pynvml.nvmlDeviceGetMemoryInfo(card) for card in cards]
        total = sum(int(gpu.total * self.gpu_share) for gpu in found)
        return Memory(total, total - sum(int(gpu.used) for gpu in found))

    def used_by(self, pids: set[int]) -> int | None:
        """GPU memory that these processes hold; None on a machine without one."""
        if self.device is Device.CPU:
            return None
        with opened_cards() as cards:
            running = [each for card in cards for each in pynvml.nvmlDeviceGetComputeRunningProcesses(card)]
        return sum(int(each.usedGpuMemory or 0) for each in running if each.pid in pids)


def own_cgroup() -> Path:
    """The folder of this process's control group, version 2; in a container that is the root of what it sees.

    https://docs.kernel.org/admin-guide/cgroup-v2.html
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return CGROUPS
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return CGROUPS / own


def _container_limits(cgroup: Path) -> Iterator[Memory]:
    """Of the group and those around it. Files that are cached count as used there, and give way when asked to."""
    for folder in (cgroup, *cgroup.parents):
        try:
            limit, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:
            continue  # no group, or the root, which has no limit
        if limit != "max":
            cached = int(counts.get("active_file", 0)) + int(counts.get("inactive_file", 0))
            yield Memory(int(limit), int(limit) - used + cached)
