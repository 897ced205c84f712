"""Results that several jobs share: computed once for a recipe, kept within a limit, oldest use first to go.

A stage is a folder. While a process uses one it holds a shared lock on it, which the kernel releases when the
process ends, however it ends; only stages that nobody holds are removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.storage.artifacts import size_bytes

log = logging.getLogger(__name__)


class StageStore:
    """Stages below `folder`, which together stay below `limit_bytes` unless a single one is larger."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._held: dict[Path, int] = {}

    def get(self, name: str, recipe: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """The folder that `build` filled for this recipe, now or earlier; others wait for who builds it.

        `name` says what the stage is; `recipe` holds everything that its contents depend on.
        """
        digest = hashlib.sha256(json.dumps([name, recipe], sort_keys=True).encode()).hexdigest()
        stage = self.folder / f"{name}-{digest[:32]}"
        if stage not in self._held:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._build_once(stage, build)
        os.utime(stage)
        return stage

    def _build_once(self, stage: Path, build: Callable[[Path], None]) -> None:
        lock = os.open(_lock_of(stage), os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(lock, fcntl.LOCK_SH)
        # Going from one kind of lock to the other lets go in between, so each look comes after a lock.
        while not stage.is_dir():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stage.is_dir():
                _build(stage, build)
            fcntl.flock(lock, fcntl.LOCK_SH)
        self._held[stage] = lock
        self._make_room()

    def _make_room(self) -> None:
        stages = sorted((path for path in self.folder.iterdir() if _is_stage(path)), key=_last_use)
        sizes = {path: size_bytes(path) for path in stages}
        total = sum(sizes.values())
        for stage in stages:
            if total <= self.limit_bytes:
                return
            if stage not in self._held and _remove_unless_held(stage):
                log.info("removed %s: the stages were larger than their limit", stage.name)
                total -= sizes[stage]


def _build(stage: Path, build: Callable[[Path], None]) -> None:
    partial = stage.with_name(f".{stage.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    build(partial)
    partial.rename(stage)


def _is_stage(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _last_use(stage: Path) -> float:
    return stage.stat().st_mtime


def _lock_of(stage: Path) -> Path:
    return stage.with_name(f".{stage.name}.lock")


def _remove_unless_held(stage: Path) -> bool:
    with _try_exclusive(_lock_of(stage)) as alone:
        if alone:
            shutil.rmtree(stage)
        return alone


@contextmanager
def _try_exclusive(lock: Path) -> Iterator[bool]:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
