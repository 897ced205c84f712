"""The artifact store: a folder in which a finished artifact appears by one rename, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from app.domain.artifacts import ArtifactKind
from app.domain.errors import DiskFull
from app.settings import Settings

MANIFEST = "manifest.json"
DOOMED = ".deleted-"
CHUNK_BYTES = 8 * 1024**2


class Stored(Protocol):
    """What the store has to know of a model."""

    @property
    def kind(self) -> str: ...

    @property
    def path(self) -> str: ...


def locate(row: Stored, settings: Settings) -> Path:
    """The folder that holds an artifact's files (`model.gguf`, or a Hugging Face checkpoint)."""
    if row.kind == ArtifactKind.BASE:
        return Path(row.path)
    return settings.artifacts_folder / row.path


def gguf_file(folder: Path) -> Path | None:
    """The file from which llama.cpp loads a GGUF artifact: `model.gguf`, or the first part of a split one."""
    whole = folder / "model.gguf"
    parts = sorted(folder.glob("model-00001-of-*.gguf"))
    return whole if whole.is_file() else next(iter(parts), None)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def seal(folder: Path) -> str:
    """Makes a staged folder fit to publish: readable, listed with checksums, on disk.

    manifest.json lists every file with its size and SHA-256; the manifest's own SHA-256 is returned.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = [
        {
            "path": str(path.relative_to(folder)),
            "size_bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in files
    ]
    text = json.dumps({"files": entries}, indent=1)
    (folder / MANIFEST).write_text(text)
    for path in (folder, *folder.rglob("*")):
        # Libraries leave some files readable by their owner alone; serving may run as another user.
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)
    return hashlib.sha256(text.encode()).hexdigest()


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def publish(staged: Path, settings: Settings, artifact_id: str) -> Path:
    """Renames a sealed folder into the store, unless that was done before."""
    target = settings.artifacts_folder / artifact_id
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_dir():
        staged.rename(target)
    os.utime(target)  # young, until its row is committed
    sync(target.parent)
    return target


def sync(path: Path) -> None:
    """Waits until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Deletes a folder, or a file, first out of sight: a half-deleted artifact never has its own name."""
    doomed = folder.with_name(f"{DOOMED}{uuid4().hex}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return  # another process was faster, or it never existed
    # Another cleaner may be at it too; what is left is hidden, and `finish_removals` deletes it.
    _delete(doomed)


def _delete(doomed: Path) -> None:
    if doomed.is_dir():
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        doomed.unlink(missing_ok=True)


def finish_removals(folder: Path) -> None:
    """Deletes what `remove` put out of sight and a crash left there."""
    for doomed in folder.glob(f"{DOOMED}*"):
        _delete(doomed)


def require_free_disk(folder: Path, needed_bytes: int, reserve_bytes: int) -> None:
    """Raises DiskFull when writing `needed_bytes` would leave less than `reserve_bytes`."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free - needed_bytes < reserve_bytes:
        raise DiskFull(
            f"about {needed_bytes} bytes are needed and {reserve_bytes} must stay free, but the disk has "
            f"{free}; delete models (DELETE /v1/models/…) or set BITMILL_DATA_DIR to a larger disk"
        )
