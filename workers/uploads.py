"""Finds uploaded files for jobs."""

from __future__ import annotations

from pathlib import Path

from app.domain.files import FilePurpose, require_purpose
from app.persistence.files import FileRepository
from app.persistence.tables import FileRow
from app.settings import Settings
from app.storage.files import locate
from workers.lookup import look_up


def find_upload(file_id: str, purpose: FilePurpose, settings: Settings, *, param: str) -> tuple[FileRow, Path]:
    """An uploaded file and where it lies; `param` is the job's field that names it.

    Raises FileNotFound, or InvalidParameter for a file of another purpose.
    """
    row = look_up(lambda session: FileRepository(session).get(file_id, param=param), settings)
    require_purpose(row.id, row.purpose, purpose, param=param)
    return row, locate(row, settings)
