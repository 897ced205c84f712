"""Checkpoints of a training, each a folder that is whole or not there.

One is written under WRITING and moved to its place by one rename. What an interrupted attempt left there is removed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from app.storage.artifacts import sync

PREFIX: Final = "checkpoint-"
WRITING: Final = ".writing"
PROGRESS: Final = "progress.json"
KEPT: Final = 2


@dataclass
class Progress:
    """What a training has come to, beside the state that the library keeps."""

    step: int = 0
    trained_tokens: int = 0
    # The loss on the sample before the first step.
    sample_before: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps."""
    found = [path for path in folder.glob(f"{PREFIX}*") if (path / PROGRESS).is_file()]
    return max(found, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def read_progress(checkpoint: Path) -> Progress:
    return Progress(**json.loads((checkpoint / PROGRESS).read_text()))


def prepare(folder: Path) -> Path:
    """An empty folder to write in."""
    shutil.rmtree(folder / WRITING, ignore_errors=True)
    (folder / WRITING).mkdir(parents=True)
    return folder / WRITING


def publish(folder: Path, progress: Progress) -> Path:
    """Moves what the library wrote for this step to its place, with the progress, and removes all but the newest."""
    name = f"{PREFIX}{progress.step}"
    written, place = folder / WRITING / name, folder / name
    (written / PROGRESS).write_text(json.dumps(asdict(progress)))
    for path in written.iterdir():
        sync(path)
    if place.exists():  # written again by an attempt that went on from an older one
        shutil.rmtree(place)
    written.rename(place)
    sync(folder)
    for old in sorted(folder.glob(f"{PREFIX}*"), key=step_of)[:-KEPT]:
        shutil.rmtree(old)
    return place
