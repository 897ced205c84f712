"""Finds models that are already on this machine's disk. The API and the workers ask the same function."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.domain.errors import InvalidParameter, PathOutsideRoots, SourceNotFound
from app.domain.model_names import ModelName, SourceKind
from app.settings import Settings
from app.storage import artifacts
from app.storage.checkpoints import CONFIG


class Trained(artifacts.Stored, Protocol):
    """What is to be known of a fine-tuned model's row."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str | None: ...

    @property
    def format(self) -> str: ...

    @property
    def manifest_sha256(self) -> str: ...


GGUF_SUFFIX: Final = ".gguf"
# To be raised whenever the importers make something else of the same file: it is imported again then.
IMPORT_VERSION: Final = 2


def locate_local(name: ModelName, settings: Settings) -> Path | None:
    """The checkpoint's folder, or the GGUF file, of a model on this disk; None when a worker has to fetch it.

    What was uploaded or trained is always a worker's to unpack. Raises SourceNotFound for a folder that is not there,
    and PathOutsideRoots.
    """
    return LOCATORS[name.kind](name, settings)


def resolve_path(name: str, roots: Sequence[Path]) -> Path | None:
    """The real path of a model inside one of `roots`, which must be real paths themselves; None if none is.

    It is a folder or a GGUF file; a folder that holds one GGUF file and no config.json stands for that file. An
    absolute name must lie in a root, a relative one is looked for in each root in turn; links are
    followed first. Raises PathOutsideRoots for a name that leads elsewhere.
    """
    if Path(name).is_absolute():
        candidates = [(_real(Path(name)), tuple(roots))]
    else:
        candidates = [(_real(root / name), (root,)) for root in roots]
    for path, allowed in candidates:
        if not any(path.is_relative_to(root) for root in allowed):
            raise PathOutsideRoots(
                f"model {name!r} lies outside the folders that may be read; put it into one of "
                f"BITMILL_SOURCE_ROOTS ({', '.join(map(str, roots))}), or add its folder there",
                param="model",
            )
        # os.path, because pathlib raises for names that are too long for the file system.
        if os.path.isdir(path):  # noqa: PTH112 -- see above
            return _only_gguf(path) or path
        if path.suffix == GGUF_SUFFIX and os.path.isfile(path):  # noqa: PTH113 -- see above
            return path
    return None


def _only_gguf(folder: Path) -> Path | None:
    found = [path for path in folder.glob(f"*{GGUF_SUFFIX}") if path.is_file()]
    # Its real path must lie here too: a link could lead out of the roots.
    if len(found) != 1 or found[0].is_symlink() or (folder / CONFIG).exists():
        return None
    return found[0]


def demo_folder(name: ModelName, settings: Settings) -> Path:
    """Where a demo model is unpacked to."""
    return settings.sources_folder / name.name


def snapshot_folder(repo: str, commit: str, settings: Settings) -> Path:
    """Where one commit of a hub model is downloaded to."""
    return settings.sources_folder / "hub" / repo / commit


def imported_folder(sha256: str, settings: Settings) -> Path:
    """Where a single file with a model, an archive or a GGUF file, is unpacked to by this version of the importers."""
    return settings.sources_folder / "files" / f"{sha256}-v{IMPORT_VERSION}"


def merged_folder(sha256: str, settings: Settings) -> Path:
    """Where a trained adapter, given by its manifest's hash, lies merged into its base."""
    return settings.sources_folder / "merged" / sha256


def trained_folder(row: Trained, settings: Settings) -> Path | None:
    """Where the whole weights of a fine-tuned model lie; None for an adapter that nobody has merged yet.

    Raises InvalidParameter for what was quantized of one: its name begins alike.
    """
    if row.kind == ArtifactKind.QUANTIZED:
        raise InvalidParameter(f"model {row.name!r} is quantized already; use its source {row.source!r}", param="model")
    if row.format != ArtifactFormat.ADAPTER:
        return artifacts.locate(row, settings)
    folder = merged_folder(row.manifest_sha256, settings)
    return folder if folder.is_dir() else None


def _real(path: Path) -> Path:
    # os.path, because Path.resolve raises on a loop of links, where realpath stops.
    return Path(os.path.realpath(path))


def _locate_folder(name: ModelName, settings: Settings) -> Path:
    found = resolve_path(name.name, settings.roots)
    if found is None:
        raise SourceNotFound(
            f"there is no folder or .gguf file {name.name!r} in BITMILL_SOURCE_ROOTS "
            f"({', '.join(map(str, settings.roots))}); put the checkpoint "
            "there, or give a hub model as 'org/name'",
            param="model",
        )
    return found


def _locate_hub(name: ModelName, settings: Settings) -> Path | None:
    if name.revision is None:
        return resolve_path(name.name, settings.roots)
    if name.commit is None:
        return None
    folder = snapshot_folder(name.repo, name.commit, settings)
    return folder if folder.is_dir() else None


def _locate_demo(name: ModelName, settings: Settings) -> Path | None:
    folder = demo_folder(name, settings)
    return folder if folder.is_dir() else None


LOCATORS: Final[dict[SourceKind, Callable[[ModelName, Settings], Path | None]]] = {
    SourceKind.DEMO: _locate_demo,
    SourceKind.HUB: _locate_hub,
    SourceKind.FILE: lambda name, settings: None,
    SourceKind.FINE_TUNED: lambda name, settings: None,
    SourceKind.FOLDER: _locate_folder,
}
