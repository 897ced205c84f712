"""The id that a database shares with its data folder, and what of that folder it knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.domain.artifacts import ArtifactKind
from app.domain.installation import Entry, Stock
from app.persistence.tables import ArtifactRow, FileRow, InstallationRow, JobRow

ONLY: Final = 1
# As many as one statement may name.
BATCH: Final = 500


class InstallationRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def id(self) -> str | None:
        return self.session.scalar(select(InstallationRow.id).where(InstallationRow.number == ONLY))

    def give(self, id_: str) -> str:
        """The database's id: this one, unless it has one already, perhaps from a process that starts beside this."""
        try:
            with self.session.begin_nested():
                self.session.add(InstallationRow(number=ONLY, id=id_, created_at=time.time()))
        except IntegrityError:
            return self.session.execute(select(InstallationRow.id)).scalar_one()
        return id_

    def replace(self, id_: str) -> None:
        if self.give(id_) != id_:
            self.session.execute(update(InstallationRow).where(InstallationRow.number == ONLY).values(id=id_))

    def stock(self, found: Set[Entry]) -> Stock:
        """What the database knows of these entries of the data folder."""
        # By the folders' names, which is where they are looked for.
        artifacts = self._ids(select(ArtifactRow.path).where(ArtifactRow.kind != ArtifactKind.BASE))
        files = self._ids(select(FileRow.id))
        jobs = self._jobs({_job_of(entry) for entry in found if entry[0] in JOBS_OF})
        known = {entry for entry in found if _is_known(entry, artifacts, files, jobs)}
        listed = self._first(ArtifactRow.id) or self._first(JobRow.id)
        return Stock(found, known, names_some=bool(artifacts or files), is_empty=not (files or listed))

    def _first(self, column: InstrumentedAttribute[str]) -> str | None:
        return self.session.scalar(select(column).limit(1))

    def _ids(self, query: object) -> set[str]:
        return set(self.session.scalars(query))  # type: ignore[call-overload]  # any SELECT of one column

    def _jobs(self, wanted: set[str]) -> set[str]:
        """Those that there are, of the jobs with these ids."""
        ids, found = sorted(wanted), set()
        for start in range(0, len(ids), BATCH):
            found |= self._ids(select(JobRow.id).where(JobRow.id.in_(ids[start : start + BATCH])))
        return found


def _is_known(entry: Entry, artifacts: set[str], files: set[str], jobs: set[str]) -> bool:
    room, name = entry
    if room in JOBS_OF:
        return _job_of(entry) in jobs
    return name in (artifacts if room == "artifacts" else files)


def _job_of(entry: Entry) -> str:
    room, name = entry
    return JOBS_OF[room](name)


# How a job's id is read from the name of what it left in these rooms.
JOBS_OF: Final[dict[str, Callable[[str], str]]] = {
    "checkpoints": lambda name: name,
    "staging": lambda name: name.rpartition("-")[0],
}
