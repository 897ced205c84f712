"""Models that already lie under one of BITMILL_SOURCE_ROOTS: checkpoints' folders and GGUF files."""

from __future__ import annotations

from pathlib import Path

from app.domain.model_names import SourceKind, parse_model_name
from app.settings import Settings
from app.storage.sources import resolve_path


def canonical_name(path: Path, settings: Settings) -> str:
    """One name for a folder or a file however it was asked for: relative to its root, where that is unambiguous."""
    for root in settings.roots:
        if path.is_relative_to(root) and path != root:
            name = path.relative_to(root).as_posix()
            if _means(name, path, settings):
                return name
    return str(path)


def _means(name: str, path: Path, settings: Settings) -> bool:
    """Whether a client that gives `name` gets `path`, and not a demo model, an upload or another root's folder."""
    if name.startswith("demo/") or parse_model_name(name).kind in (SourceKind.FILE, SourceKind.FINE_TUNED):
        return False
    return resolve_path(name, settings.roots) == path
