"""Uploaded files. A row is committed after its content is on disk, and deleted before it."""

from __future__ import annotations

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session

from app.domain.errors import FileNotFound
from app.domain.files import FilePurpose
from app.persistence.tables import FileRow


class FileRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, file: FileRow) -> None:
        self.session.add(file)
        self.session.flush()

    def get(self, file_id: str, *, param: str = "file_id") -> FileRow:
        """Raises FileNotFound; `param` is the request's field that named the file."""
        return _found(self.session.get(FileRow, file_id), file_id, param)

    def hold(self, file_id: str, *, param: str = "file_id") -> FileRow:
        """Like `get`, but nobody else can hold or delete the file until this transaction ends.

        Whoever stores a job on the file and whoever deletes the file both hold it: one of them waits, then sees
        what the other did. On SQLite every transaction that writes excludes the others anyway.
        """
        query = select(FileRow).where(FileRow.id == file_id).with_for_update()
        return _found(self.session.scalar(query), file_id, param)

    def page(
        self, *, limit: int, after: str | None, purpose: FilePurpose | None, newest_first: bool
    ) -> tuple[list[FileRow], bool]:
        """Up to `limit` files in the order of their upload, and whether more follow.

        Raises FileNotFound for `after`.
        """
        columns = (FileRow.created_at, FileRow.id)
        query = select(FileRow).order_by(*(column.desc() if newest_first else column.asc() for column in columns))
        if purpose is not None:
            query = query.where(FileRow.purpose == purpose)
        if after is not None:
            last = self.get(after, param="after")
            same_time = FileRow.created_at == last.created_at
            if newest_first:
                query = query.where(or_(FileRow.created_at < last.created_at, and_(same_time, FileRow.id < last.id)))
            else:
                query = query.where(or_(FileRow.created_at > last.created_at, and_(same_time, FileRow.id > last.id)))
        rows = list(self.session.scalars(query.limit(limit + 1)))
        return rows[:limit], len(rows) > limit

    def ids(self) -> set[str]:
        return set(self.session.scalars(select(FileRow.id)))

    def delete(self, file_id: str) -> None:
        self.session.execute(delete(FileRow).where(FileRow.id == file_id))


def _found(row: FileRow | None, file_id: str, param: str) -> FileRow:
    if row is None:
        raise FileNotFound(f"there is no file {file_id!r}; GET /v1/files lists them", param=param)
    return row
