"""Receiving, listing and deleting uploaded files."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

from app.domain.errors import FileInUse, FileNotFound, InvalidParameter
from app.domain.files import FilePurpose, clean_filename, parse_purpose, require_fitting_name
from app.domain.jobs import new_id
from app.persistence.comparisons import ComparisonRepository
from app.persistence.files import FileRepository
from app.persistence.jobs import JobRepository
from app.persistence.patience import is_away
from app.persistence.tables import FileRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage import files
from app.storage.artifacts import require_free_disk
from app.storage.files import StagedFile

log = logging.getLogger(__name__)

# Far longer than an upload may be silent.
ABANDONED_SECONDS: Final = 3600.0


class FileService:
    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings

    def stage(self, least_bytes: int) -> StagedFile:
        """An empty file to receive into, if a file of at least this size may come and has room.

        Raises UploadTooLarge or DiskFull.
        """
        files.require_size(least_bytes, self.settings)
        self._remove_broken()
        require_free_disk(self.settings.files_folder, least_bytes, self.settings.min_free_disk_bytes)
        return StagedFile(self.settings)

    def add(self, staged: StagedFile, filename: str, purpose: str) -> FileRow:
        """Publishes a received file, then commits its row: a file that is listed is whole.

        Raises InvalidParameter for what a file of this purpose cannot be, or DiskFull.
        """
        row = self._describe(staged, clean_filename(filename), parse_purpose(purpose))
        path = staged.publish(row)
        try:
            with self.database.transaction() as session:
                FileRepository(session).add(row)
        except BaseException as error:
            # Where the answer to a commit was lost the row may be there: a file without one goes into quarantine.
            if not is_away(error):
                path.unlink(missing_ok=True)
            raise
        return row

    def _describe(self, staged: StagedFile, filename: str, purpose: FilePurpose) -> FileRow:
        if staged.size_bytes == 0:
            raise InvalidParameter(f"file {filename!r} is empty; send one with content", param="file")
        require_fitting_name(filename, purpose)
        return FileRow(
            id=new_id("file"), filename=filename, purpose=purpose.value, size_bytes=staged.size_bytes,
            sha256=staged.sha256, created_at=time.time(),
        )  # fmt: skip

    def _remove_broken(self) -> None:
        older_than = time.time() - ABANDONED_SECONDS
        for name in files.remove_broken_uploads(self.settings, older_than=older_than):
            log.warning("removed %s from the files folder: its upload never ended", name)

    def get(self, file_id: str) -> FileRow:
        with self.database.reading() as session:
            return FileRepository(session).get(file_id)

    def content(self, file_id: str) -> tuple[FileRow, Path]:
        """A file and where it lies. Raises FileNotFound."""
        row = self.get(file_id)
        path = files.locate(row, self.settings)
        if not path.is_file():
            raise FileNotFound(
                f"the content of file {file_id!r} is gone from the data folder; delete it and upload it again",
                param="file_id",
            )
        return row, path

    def page(
        self, *, limit: int, after: str | None, purpose: str | None, newest_first: bool
    ) -> tuple[list[FileRow], bool]:
        wanted = parse_purpose(purpose) if purpose is not None else None
        with self.database.reading() as session:
            return FileRepository(session).page(limit=limit, after=after, purpose=wanted, newest_first=newest_first)

    def delete(self, file_id: str) -> FileRow:
        """Takes a file off the list, then its content off the disk. Models imported from it stay.

        Raises FileNotFound, or FileInUse while an unfinished job needs it.
        """
        with self.database.transaction() as session:
            row = FileRepository(session).hold(file_id)
            busy = JobRepository(session).active_on_file(file_id)
            holders = [f"job {job.id!r}" for job in busy]
            holders += [f"comparison {each!r}" for each in ComparisonRepository(session).open_on_file(file_id)]
            if holders:
                raise FileInUse(f"{holders[0]} needs file {file_id!r}; cancel it or wait for its end", param="file_id")
            FileRepository(session).delete(file_id)
        files.locate(row, self.settings).unlink(missing_ok=True)
        return row
