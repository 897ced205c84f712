"""Brings a model into the sources folder once: all of it or nothing, whoever else asks for it meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from workers.locks import exclusive, nothing

Report = Callable[[float, str], None]


def import_once(target: Path, fill: Callable[[Path], None], waiting: Callable[[], None] = nothing) -> Path:
    """Returns `target`, which `fill` wrote unless it was there. `waiting` is called while another process writes it.

    `fill` gets the folder to write to. After a crash the next one gets the same folder, with what is in it.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(target.with_name(f".{target.name}.lock"), waiting):
        if not target.is_dir():
            partial = target.with_name(f".{target.name}.partial")
            partial.mkdir(exist_ok=True)
            fill(partial)
            _settle(partial)
            partial.rename(target)
    return target


def import_afresh(target: Path, fill: Callable[[Path], None], waiting: Callable[[], None] = nothing) -> Path:
    """Like `import_once`, where nothing can be resumed: `fill` gets an empty folder, and a failure leaves none."""

    def fill_empty(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        try:
            fill(folder)
        except BaseException:
            shutil.rmtree(folder)
            raise

    return import_once(target, fill_empty, waiting)


def telling(report: Report) -> Callable[[], None]:
    """What to call while another process imports the same."""
    return lambda: report(0.0, "waiting for another job that fetches the model")


def _settle(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        # Libraries leave some files readable by their owner alone; serving may run as another user.
        path.chmod(0o755 if path.is_dir() else 0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
