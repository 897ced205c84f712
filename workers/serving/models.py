"""The models that can be served, as the database knows them: artifacts, and names that lead to remote servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import InvalidParameter
from app.domain.serving import DeploymentOptions
from app.persistence.artifacts import ArtifactRepository
from app.persistence.deployments import DeploymentRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage.artifacts import locate
from workers.serving.served import ServedAdapter, ServedModel

NOWHERE = Path()


class ModelDirectory:
    """Looks models up, and keeps what was asked for them."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings

    def find(self, name: str) -> ServedModel:
        """Raises ModelNotFound."""
        adapter = self._adapter(name)
        if adapter is not None:
            base = self.find(self._base_of(adapter))
            below = base.adapter.folders if base.adapter else ()
            return replace(base, adapter=ServedAdapter(name, (*below, locate(adapter, self.settings))))
        with self.database.reading() as session:
            row = DeploymentRepository(session).find(name)
        return self.with_options(name, DeploymentOptions(**row.options) if row else DeploymentOptions())

    def _adapter(self, name: str) -> ArtifactRow | None:
        with self.database.reading() as session:
            row = ArtifactRepository(session).find(name)
        return row if row is not None and row.format == ArtifactFormat.ADAPTER else None

    def _base_of(self, adapter: ArtifactRow) -> str:
        base = (adapter.method or {}).get("base") or adapter.source
        assert base is not None  # noqa: S101 -- every adapter was trained on something
        return base

    def with_options(self, name: str, options: DeploymentOptions) -> ServedModel:
        """Raises ModelNotFound, or InvalidParameter where the draft model is of another format."""
        if self._adapter(name) is not None:
            if options.model_dump(exclude_defaults=True):
                raise InvalidParameter(
                    f"{name!r} is an adapter, served on {self.find(name).name!r}; give the options to that",
                    param="model",
                )
            return self.find(name)
        if options.remote is not None:
            return ServedModel(name, NOWHERE, ArtifactFormat.SAFETENSORS, options=options)
        row = self._artifact(name)
        method = str(row.method["type"]) if row.method else None
        folder, draft = locate(row, self.settings), self._draft(options, row)
        return ServedModel(name, folder, ArtifactFormat(row.format), method, options, draft, self._evaluated(name))

    def _evaluated(self, name: str) -> tuple[dict[str, Any], ...]:
        with self.database.reading() as session:
            rows = JobRepository(session).evaluations_of(name)
        return tuple(row.result for row in rows if row.result)

    def _artifact(self, name: str) -> ArtifactRow:
        with self.database.reading() as session:
            return ArtifactRepository(session).get(name)

    def _draft(self, options: DeploymentOptions, model: ArtifactRow) -> Path | None:
        if options.speculation is None or options.speculation.draft_model is None:
            return None
        row = self._artifact(options.speculation.draft_model)
        if row.format != model.format:
            raise InvalidParameter(
                f"the draft model {row.name!r} is {row.format}, and {model.name!r} is {model.format}; both must be "
                f"of one format",
                param="speculation.draft_model",
            )
        return locate(row, self.settings)

    def keep(self, name: str, options: DeploymentOptions) -> None:
        with self.database.transaction() as session:
            DeploymentRepository(session).put(name, options.model_dump(mode="json", exclude_defaults=True))

    def forget(self, name: str) -> bool:
        """Whether anything was asked for this model."""
        with self.database.transaction() as session:
            known = DeploymentRepository(session).find(name) is not None
            DeploymentRepository(session).delete(name)
            return known

    def kept(self) -> dict[str, DeploymentOptions]:
        with self.database.reading() as session:
            rows = DeploymentRepository(session).list()
        return {row.model: DeploymentOptions(**row.options) for row in rows}
