"""Results that several jobs share: computed once for a recipe, kept within a limit, oldest use first to go.

A stage is a folder with two locks beside it. Who builds or removes it holds `build` alone; who uses it shares `use`
until its process ends, however that comes about. Only a stage that nobody uses is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.storage import artifacts
from app.storage.artifacts import size_bytes
from workers.locks import at_once, exclusive, nothing

log = logging.getLogger(__name__)


class StageStore:
    """Stages below `folder`, which together stay below `limit_bytes` unless a single one is larger."""

    def __init__(self, folder: Path, limit_bytes: int, waiting: Callable[[], None] = nothing) -> None:
        """`waiting` is called now and then while another process builds what is asked for."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.waiting = waiting
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
        with exclusive(_lock(stage, "build"), self.waiting):
            if not stage.is_dir():
                self._make_room(stage)
                _build(stage, build)
            use = os.open(_lock(stage, "use"), os.O_CREAT | os.O_RDWR, 0o644)
            fcntl.flock(use, fcntl.LOCK_SH)
        self._held[stage] = use
        self._make_room(stage)

    def _make_room(self, wanted: Path) -> None:
        """Removes what crashes left, then the stages used longest ago, until the limit is kept."""
        artifacts.finish_removals(self.folder)
        for left in self.folder.glob(".*.partial"):
            _remove_unless_locked(left, _stage_of(left))
        ages = {path: age for path in self.folder.iterdir() if _is_stage(path) and (age := _last_use(path))}
        sizes = {path: _size(path) for path in ages}
        total = sum(sizes.values())
        for stage in sorted(ages, key=ages.__getitem__):
            if total <= self.limit_bytes:
                return
            if stage != wanted and stage not in self._held and _remove_unless_locked(stage, stage):
                log.info("removed %s: the stages were larger than their limit", stage.name)
                total -= sizes[stage]


def shared_stages(settings: Settings, report: Callable[[float, str], None]) -> StageStore:
    """The installation's own."""
    folder, limit = settings.cache_folder / "stages", settings.stage_cache_bytes
    return StageStore(folder, limit, lambda: report(0.0, "waiting for another job that makes the same"))


def _build(stage: Path, build: Callable[[Path], None]) -> None:
    partial = stage.with_name(f".{stage.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    build(partial)
    partial.rename(stage)


def _is_stage(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _last_use(stage: Path) -> float | None:
    """None for a stage that another process has just removed."""
    try:
        return stage.stat().st_mtime
    except FileNotFoundError:
        return None


def _size(stage: Path) -> int:
    try:
        return size_bytes(stage)
    except FileNotFoundError:
        return 0


def _stage_of(partial: Path) -> Path:
    return partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))


def _lock(stage: Path, kind: str) -> Path:
    return stage.with_name(f".{stage.name}.{kind}.lock")


def _remove_unless_locked(folder: Path, stage: Path) -> bool:
    """Out of sight first: what a crash leaves half removed must not be taken for a stage."""
    try:
        with at_once(_lock(stage, "build")), at_once(_lock(stage, "use")):
            artifacts.remove(folder)
    except BlockingIOError:
        return False
    return True
