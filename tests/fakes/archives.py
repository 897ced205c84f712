"""Archives for tests: whole ones of a folder, and hostile ones entry by entry."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path


def pack(folder: Path, archive: Path, *, prefix: str = "") -> Path:
    """Packs the files of `folder` under `prefix`; the archive's name says how. Returns `archive`."""
    files = [(f"{prefix}{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())]
    return write_zip(archive, files) if archive.suffix == ".zip" else write_tar(archive, files)


def write_zip(archive: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]] | list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return archive


def write_tar(archive: Path, entries: list[tuple[str | tarfile.TarInfo, bytes]] | list[tuple[str, bytes]]) -> Path:
    mode = "w" if archive.suffix == ".tar" else "w:gz"
    with tarfile.open(archive, mode) as file:  # type: ignore[call-overload]  # a mode of the two
        for name, content in entries:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return archive
