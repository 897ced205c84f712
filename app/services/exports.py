"""The files of an artifact as they leave the server: its own, with a card that tells what was measured since."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain.artifacts import ArtifactKind
from app.domain.cards import QUALITY, README, CardFacts, model_card, quality_json
from app.domain.errors import FileNotFound, InvalidParameter
from app.persistence.artifacts import ArtifactRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage import artifacts


@dataclass(frozen=True)
class ExportedFile:
    """Its content lies on the disk at `path`, or is `text`."""

    name: str
    size_bytes: int
    sha256: str
    path: Path | None = None
    text: str | None = None


class ExportService:
    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings

    def files(self, model: str) -> list[ExportedFile]:
        """Raises ModelNotFound, InvalidParameter for an original, FileNotFound where the files are gone."""
        row, training = self._find(model)
        folder = artifacts.locate(row, self.settings)
        cards = {README: model_card(_facts(row, training)), QUALITY: quality_json(_facts(row, training))}
        stored = [file for file in self._stored(folder, model) if file.name not in cards]
        return [*stored, *(_written(name, text) for name, text in cards.items())]

    def get(self, model: str, name: str) -> ExportedFile:
        """Raises FileNotFound for a name that is not in the list."""
        for file in self.files(model):
            if file.name == name:
                return file
        raise FileNotFound(f"the model {model!r} has no file {name!r}; list its files to see them", param="file")

    def _find(self, model: str) -> tuple[ArtifactRow, dict[str, Any] | None]:
        with self.database.reading() as session:
            row = ArtifactRepository(session).get(model)
            job = JobRepository(session).find(row.job_id) if row.job_id else None
        if row.kind == ArtifactKind.BASE:
            raise InvalidParameter(
                f"{model!r} is an original, which lies where it came from; export results", param="model"
            )
        return row, (job.result or {}).get("proof") if job else None

    def _stored(self, folder: Path, model: str) -> list[ExportedFile]:
        manifest = folder / artifacts.MANIFEST
        if not manifest.is_file():
            raise FileNotFound(f"the files of {model!r} are gone from the data folder; make it again", param="model")
        return [
            ExportedFile(entry["path"], entry["size_bytes"], entry["sha256"], path=folder / entry["path"])
            for entry in json.loads(manifest.read_text())["files"]
        ]


def _written(name: str, text: str) -> ExportedFile:
    data = text.encode()
    return ExportedFile(name, len(data), hashlib.sha256(data).hexdigest(), text=text)


def _facts(row: ArtifactRow, training: dict[str, Any] | None) -> CardFacts:
    fields = (
        "name", "source", "format", "method", "parameter_count", "bits_per_weight", "tensor_types", "versions",
        "calibration", "quality", "evaluation", "size_bytes", "seconds", "peak_memory_bytes",
    )  # fmt: skip
    return CardFacts.model_validate({field: getattr(row, field) for field in fields} | {"training": training})
