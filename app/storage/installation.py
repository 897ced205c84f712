"""A data folder's id, what lies in it, and its quarantine.

What the database does not know is moved into the quarantine by one rename and stays there for days: time to notice
that it was the database that was wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Set
from pathlib import Path
from uuid import uuid4

from app.domain.installation import Entry
from app.settings import Settings
from app.storage import artifacts

ID_FILE = "installation-id"


def read_id(settings: Settings) -> str | None:
    """The data folder's id; None where it has none yet."""
    path = settings.data_folder / ID_FILE
    return (path.read_text().strip() or None) if path.is_file() else None


def write_id(settings: Settings, id_: str) -> None:
    """Gives the data folder its id, safely on disk: whole or not at all."""
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    written = settings.data_folder / f".{ID_FILE}-{uuid4().hex}"
    written.write_text(f"{id_}\n")
    # The other processes may run as other users.
    written.chmod(0o644)
    artifacts.sync(written)
    written.rename(settings.data_folder / ID_FILE)
    artifacts.sync(settings.data_folder)


def rooms(settings: Settings) -> dict[str, Path]:
    """The folders whose every entry belongs to a row of the database."""
    return {
        "artifacts": settings.artifacts_folder,
        "files": settings.files_folder,
        "checkpoints": settings.checkpoints_folder,
        "staging": settings.staging_folder,
    }


def entries(settings: Settings) -> set[Entry]:
    return {(room, name) for room, folder in rooms(settings).items() for name in names_in(folder)}


def quarantined(settings: Settings) -> set[Entry]:
    return {(room, name) for room in rooms(settings) for name in names_in(settings.quarantine_folder / room)}


def names_in(folder: Path) -> list[str]:
    """Those without a dot before them: what has one is on its way in or out."""
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]  # noqa: PTH208 -- names are all
    except FileNotFoundError:
        return []


def set_aside(found: Iterable[Entry], settings: Settings, *, older_than: float) -> list[Entry]:
    """Moves entries that were last changed before `older_than` into the quarantine. Returns those that were."""
    return [entry for entry in found if _move_if_older(entry, settings, older_than)]


def _move_if_older(entry: Entry, settings: Settings, moment: float) -> bool:
    room, name = entry
    source, target = rooms(settings)[room] / name, settings.quarantine_folder / room / name
    try:
        if source.stat().st_mtime >= moment or target.exists():
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
        os.utime(target)  # its days begin now
    except FileNotFoundError:
        return False  # another process was faster
    return True


def bring_back(known: Set[Entry], settings: Settings) -> list[Entry]:
    """Moves what the database knows, after all, back from the quarantine. Returns those entries."""
    moved = []
    for room, name in sorted(quarantined(settings) & known):
        target = rooms(settings)[room] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not target.exists():
                (settings.quarantine_folder / room / name).rename(target)
                moved.append((room, name))
        except FileNotFoundError:
            continue  # another process was faster
    return moved


def delete_expired(settings: Settings) -> list[Entry]:
    """Deletes what has been in the quarantine for its days. Returns those entries."""
    for room in rooms(settings):
        artifacts.finish_removals(settings.quarantine_folder / room)
    moment = time.time() - settings.quarantine_days * 86_400
    return [entry for entry in sorted(quarantined(settings)) if _delete_if_older(entry, settings, moment)]


def _delete_if_older(entry: Entry, settings: Settings, moment: float) -> bool:
    path = settings.quarantine_folder / entry[0] / entry[1]
    try:
        if path.stat().st_mtime >= moment:
            return False
    except FileNotFoundError:
        return False  # another process was faster
    artifacts.remove(path)
    return True
