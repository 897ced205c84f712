"""Listing and deleting models: imported originals and the results of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.domain.errors import ModelInUse
from app.persistence.artifacts import ArtifactRepository
from app.persistence.comparisons import ComparisonRepository
from app.persistence.deployments import DeploymentRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow, DeploymentRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage import artifacts
from app.storage.sources import merged_folder


class ModelService:
    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings

    def list(self) -> Sequence[ArtifactRow]:
        with self.database.reading() as session:
            return ArtifactRepository(session).list()

    def remote(self) -> Sequence[DeploymentRow]:
        """Models that are deployed on other servers: they have no files here."""
        with self.database.reading() as session:
            return [row for row in DeploymentRepository(session).list() if row.options.get("remote")]

    def get(self, name: str) -> ArtifactRow:
        with self.database.reading() as session:
            return ArtifactRepository(session).get(name)

    def delete(self, name: str) -> ArtifactRow:
        """Takes a model off the list, then its files off the disk.

        The files of an original stay where they are when they are the user's own folder, or another's too. Raises
        ModelNotFound, or ModelInUse while a job works on the model.
        """
        with self.database.transaction() as session:
            row = ArtifactRepository(session).get(name)
            busy = JobRepository(session).active_on_model(name)
            holders = [f"job {job.id!r}" for job in busy]
            holders += [f"comparison {each!r}" for each in ComparisonRepository(session).open_on_model(name)]
            if holders:
                raise ModelInUse(f"{holders[0]} works on {name!r}; cancel it or wait for its end", param="model")
            adapters = ArtifactRepository(session).adapters_of(name)
            if adapters:
                raise ModelInUse(
                    f"the adapter {adapters[0].name!r} is served on {name!r}; delete it first", param="model"
                )
            ArtifactRepository(session).delete(row.id)
            DeploymentRepository(session).delete(name)
            shared = ArtifactRepository(session).has_path(row.path)
        folder = artifacts.locate(row, self.settings)
        ours = row.kind != ArtifactKind.BASE or folder.is_relative_to(self.settings.sources_folder)
        if ours and not shared:
            artifacts.remove(folder)
        if row.format == ArtifactFormat.ADAPTER:
            artifacts.remove(merged_folder(row.manifest_sha256, self.settings))
        return row
