"""How many threads llama.cpp decodes fastest with: measured once per model file and machine, then remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

log = logging.getLogger("bitmill.threads")

# Beyond this a measurement takes longer than a client likes to wait, and all cores are right anyway.
MEASURED_BYTES: Final = 4 * 1024**3


def decode_threads(model: Path, folder: Path, seconds_with: Callable[[int], float]) -> int:
    """The number of threads for this model here. `seconds_with` decodes a fixed number of tokens with so many.

    The answer is kept in `folder`; it holds for this file's size, this number of cores and this file name.
    """
    cores = usable_cores()
    size = model.stat().st_size
    if size > MEASURED_BYTES or cores == 1:
        return cores
    kept = folder / f"{hashlib.sha256(f'{model}:{size}:{cores}'.encode()).hexdigest()[:32]}.json"
    if kept.is_file():
        return int(json.loads(kept.read_text())["threads"])
    seconds = {threads: seconds_with(threads) for threads in candidates(cores)}
    best = min(seconds, key=lambda threads: seconds[threads])
    log.info("decodes fastest with %d threads: %s", best, seconds)
    _keep(kept, {"threads": best, "seconds": seconds, "model": str(model)})
    return best


def usable_cores() -> int:
    """Cores that this process may run on, which a container may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def candidates(cores: int) -> list[int]:
    """1, 2, 4 … and all cores."""
    powers = [2**exponent for exponent in range(cores.bit_length())]
    return sorted({threads for threads in powers if threads <= cores} | {cores})


def _keep(path: Path, value: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{path.name}.{os.getpid()}")
    written.write_text(json.dumps(value))
    written.replace(path)  # whole or not at all: another engine may read it at this moment
