"""From a model's name to a checked and fingerprinted checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.domain.model_names import ModelName, SourceKind, parse_model_name
from app.settings import Settings
from app.storage.checkpoints import Checkpoint, fingerprint, inspect_checkpoint
from app.storage.sources import GGUF_SUFFIX, locate_local
from workers.sources.completeness import require_complete
from workers.sources.demo import import_demo
from workers.sources.folder import canonical_name
from workers.sources.gguf_import import import_gguf
from workers.sources.hub import import_from_hub
from workers.sources.importing import Report
from workers.sources.trained import import_trained
from workers.sources.upload import import_upload


@dataclass(frozen=True)
class Source:
    """A model that is ready to be read. `fingerprint` is of its contents: 64 hex digits."""

    name: str
    path: Path
    fingerprint: str
    checkpoint: Checkpoint


# Folders have no entry: they are on the disk, or they are not found.
IMPORTERS: Final[dict[SourceKind, Callable[[ModelName, Settings, Report], Path]]] = {
    SourceKind.DEMO: import_demo,
    SourceKind.HUB: import_from_hub,
    SourceKind.FILE: import_upload,
    SourceKind.FINE_TUNED: import_trained,
}


def resolve(name: str, settings: Settings, report: Report) -> Source:
    """Imports the model if it must be, checks its files and hashes them. A local folder wins over the hub.

    `report` gets the fraction done and what is being done. Raises InvalidModelName, PathOutsideRoots,
    SourceNotFound, FileNotFound, PickleCheckpoint, UnsafeArchive, CorruptCheckpoint, UnsupportedArchitecture,
    IncompatibleModel, HubUnreachable or DiskFull.
    """
    model = parse_model_name(name)
    report(0.0, "looking for the model")
    found = locate_local(model, settings) or IMPORTERS[model.kind](model, settings, report)
    path = import_gguf(found, settings, report) if found.suffix == GGUF_SUFFIX and found.is_file() else found
    checkpoint = inspect_checkpoint(path)
    report(0.9, "fingerprinting the model")
    digest = fingerprint(path, settings.cache_folder)
    require_complete(checkpoint, digest, settings)
    report(1.0, "model ready")
    return Source(_name(model, found, settings), path, digest, checkpoint)


def _name(model: ModelName, path: Path, settings: Settings) -> str:
    return canonical_name(path, settings) if model.kind is SourceKind.FOLDER else model.name
