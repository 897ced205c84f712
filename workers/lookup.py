"""What jobs' processes look up: they hold no database open while they work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from sqlalchemy.orm import Session

from app.persistence.artifacts import ArtifactRepository
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from app.settings import Settings


@contextmanager
def reading(settings: Settings) -> Iterator[Session]:
    """A session for a few queries, on a connection that is closed after them."""
    with closing(Database(settings.database)) as database, database.reading() as session:
        yield session


def find_artifact(name: str, settings: Settings) -> ArtifactRow | None:
    with reading(settings) as session:
        return ArtifactRepository(session).find(name)
