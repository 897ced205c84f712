"""How much of a GPU's memory is in use, sampled while something happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pynvml

SAMPLE_SECONDS = 0.1


def used_bytes() -> int | None:
    """Of all GPUs of the machine, by whomever; None without one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
    finally:
        pynvml.nvmlShutdown()


@dataclass
class Peak:
    """`bytes` above what was in use before; None without a GPU."""

    before: int | None
    bytes: int | None = None

    def see(self) -> None:
        now = used_bytes()
        if now is not None and self.before is not None:
            self.bytes = max(self.bytes or 0, now - self.before)


@contextmanager
def peak() -> Iterator[Peak]:
    found = Peak(used_bytes())
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            found.see()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found.see()
