"""Locks between processes, which the kernel releases when their holder dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

WAIT_SECONDS: Final = 0.5


def nothing() -> None:
    """For who has nobody to tell that it waits."""


@contextmanager
def exclusive(lock: Path, waiting: Callable[[], None] = nothing) -> Iterator[None]:
    """Holds the lock alone. `waiting` is called now and then until it can: who waits for hours has not hung."""
    with lock.open("a") as file:
        while not _taken(file.fileno()):
            waiting()
            time.sleep(WAIT_SECONDS)
        yield


@contextmanager
def at_once(lock: Path) -> Iterator[None]:
    """The same without waiting. Raises BlockingIOError where somebody has it."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
