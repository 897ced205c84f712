"""Uploaded models: one archive of a checkpoint's folder, or one GGUF file."""

from __future__ import annotations

from pathlib import Path

from app.domain.files import FilePurpose
from app.domain.model_names import ModelName
from app.persistence.tables import FileRow
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from app.storage.sources import GGUF_SUFFIX, imported_folder
from workers.sources.archives import unpack_archive
from workers.sources.gguf_import import unpack
from workers.sources.importing import Report, import_afresh, telling
from workers.uploads import find_upload


def import_upload(name: ModelName, settings: Settings, report: Report) -> Path:
    """Unpacks an uploaded model unless a file of the same content was before.

    Raises FileNotFound, InvalidParameter for a file of another purpose, UnsafeArchive, PickleCheckpoint,
    SourceNotFound, CorruptCheckpoint, IncompatibleModel, UnsupportedArchitecture, InsufficientMemory or DiskFull.
    """
    row, content = find_upload(name.name, FilePurpose.MODEL, settings, param="model")

    def fill(folder: Path) -> None:
        _unpack(row, content, folder, settings, report)
        inspect_checkpoint(folder)  # what is no whole checkpoint is not kept

    return import_afresh(imported_folder(row.sha256, settings), fill, telling(report))


def _unpack(row: FileRow, content: Path, folder: Path, settings: Settings, report: Report) -> None:
    if row.filename.lower().endswith(GGUF_SUFFIX):
        unpack(content, folder, settings, report)
    else:
        unpack_archive(content, row.filename, folder, settings, report)
