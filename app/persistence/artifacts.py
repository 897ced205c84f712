"""Artifacts: originals that were imported and the results of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.domain.errors import ModelNotFound
from app.persistence.tables import ArtifactRow


class ArtifactRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, artifact: ArtifactRow) -> None:
        self.session.add(artifact)
        self.session.flush()

    def list(self) -> Sequence[ArtifactRow]:
        query = select(ArtifactRow).order_by(ArtifactRow.created_at, ArtifactRow.name)
        return list(self.session.scalars(query))

    def find(self, name: str) -> ArtifactRow | None:
        return self.session.scalar(select(ArtifactRow).where(ArtifactRow.name == name))

    def get(self, name: str) -> ArtifactRow:
        """Raises ModelNotFound."""
        row = self.find(name)
        if row is None:
            raise ModelNotFound(f"The model {name!r} does not exist; GET /v1/models lists what does", param="model")
        return row

    def find_result(self, key: str, suffix: str | None) -> ArtifactRow | None:
        """The artifact that an identical request made before."""
        query = select(ArtifactRow).where(ArtifactRow.key == key, ArtifactRow.kind == ArtifactKind.QUANTIZED)
        same = ArtifactRow.suffix.is_(None) if suffix is None else ArtifactRow.suffix == suffix
        return self.session.scalar(query.where(same).limit(1))

    def keep_evaluation(self, name: str, result: dict[str, Any]) -> None:
        """Puts the newest measurements on a model's row, if it is still there."""
        self.session.execute(update(ArtifactRow).where(ArtifactRow.name == name).values(evaluation=result))

    def has_path(self, path: str) -> bool:
        """Whether any artifact's files lie there: originals of the same content share a folder."""
        return self.session.scalar(select(ArtifactRow.id).where(ArtifactRow.path == path).limit(1)) is not None

    def adapters_of(self, name: str) -> Sequence[ArtifactRow]:
        """The adapters that are served on this model."""
        on = or_(ArtifactRow.source == name, ArtifactRow.method["base"].as_string() == name)
        return list(self.session.scalars(select(ArtifactRow).where(ArtifactRow.format == ArtifactFormat.ADAPTER, on)))

    def exists(self, artifact_id: str) -> bool:
        return self.session.get(ArtifactRow, artifact_id) is not None

    def ids(self) -> set[str]:
        return set(self.session.scalars(select(ArtifactRow.id)))

    def delete(self, artifact_id: str) -> None:
        self.session.execute(delete(ArtifactRow).where(ArtifactRow.id == artifact_id))
