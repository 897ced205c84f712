"""What jobs' processes look up: they hold no database open while they work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from sqlalchemy.orm import Session

from app.persistence.artifacts import ArtifactRepository
from app.persistence.patience import patiently
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from app.settings import Settings

T = TypeVar("T")


def look_up(query: Callable[[Session], T], settings: Settings) -> T:
    """The query's result, on a connection that is closed after it. A database that is away is waited for.

    For as long as it takes: the supervisor ends this process where that is too long.
    """

    def read() -> T:
        with closing(Database(settings.database)) as database, database.reading() as session:
            return query(session)

    return patiently(read, lambda error: None)


def find_artifact(name: str, settings: Settings) -> ArtifactRow | None:
    return look_up(lambda session: ArtifactRepository(session).find(name), settings)
