"""Models that training jobs made: whole ones as they are, adapters merged into their base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.domain.model_names import ModelName
from app.persistence.artifacts import ArtifactRepository
from app.persistence.tables import ArtifactRow
from app.settings import Settings
from app.storage import artifacts
from app.storage.sources import merged_folder, trained_folder
from workers.lookup import look_up
from workers.sources.importing import Report, import_afresh, telling


@dataclass(frozen=True)
class Merging:
    """What the merging knows of the outside world."""

    max_shard_bytes: int
    report: Report


def import_trained(name: ModelName, settings: Settings, report: Report) -> Path:
    """The checkpoint of a fine-tuned model. An adapter is merged into its original's weights, once.

    Raises ModelNotFound, and what resolving the original raises.
    """
    row = look_up(lambda session: ArtifactRepository(session).get(name.name), settings)
    whole = trained_folder(row, settings)
    if whole is not None:
        return whole
    return import_afresh(
        merged_folder(row.manifest_sha256, settings),
        lambda target: _merge(row, target, settings, report),
        telling(report),
    )


def _merge(row: ArtifactRow, target: Path, settings: Settings, report: Report) -> None:
    from workers.sources.resolve import resolve
    from workers.training.merging import merge_adapter

    assert row.source is not None  # noqa: S101 -- every result of a training has one
    original = resolve(row.source, settings, lambda fraction, stage: report(fraction / 2, stage))
    run = Merging(settings.max_shard_bytes, lambda fraction, stage: report(0.5 + fraction / 2, stage))
    merge_adapter(original.checkpoint, artifacts.locate(row, settings), target, run)
