"""Finds uploaded files for jobs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from app.persistence.files import FileRepository
from app.persistence.tables import FileRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage.files import locate


def find_upload(file_id: str, settings: Settings, *, param: str) -> tuple[FileRow, Path]:
    """An uploaded file and where it lies. Raises FileNotFound; `param` is the job's field that names the file."""
    with closing(Database(settings.database)) as database, database.reading() as session:
        row = FileRepository(session).get(file_id, param=param)
    return row, locate(row, settings)
