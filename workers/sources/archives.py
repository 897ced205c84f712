"""Unpacks uploaded archives of a checkpoint's folder. Every entry is looked at before the first byte is written.

Only files of a model are copied, each to its plain name in one folder, so nothing in an archive can lead anywhere
else: tarfile's and zipfile's own extraction is never used. What could do harm elsewhere is refused, not skipped.
"""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Final

from app.domain.errors import CorruptCheckpoint, PickleCheckpoint, SourceNotFound, UnsafeArchive
from app.settings import Settings
from app.storage.artifacts import require_free_disk
from app.storage.checkpoints import CONFIG, MODEL_FILE_SUFFIXES, PICKLE_SUFFIXES
from workers.sources.importing import Report

MAX_ENTRIES: Final = 10_000
# tarfile reads a whole extended header at once: this bounds what one can make it allocate.
MAX_READ_BYTES: Final = 1024**2
# And all of them together.
MAX_HEADER_BYTES: Final = 32 * 1024**2
BLOCK_BYTES: Final = 512
COPY_BYTES: Final = 8 * 1024**2
GZIP_MAGIC: Final = b"\x1f\x8b"
# What a checkpoint's folder gets from the systems that it passed through.
IGNORED_FOLDER: Final = "__MACOSX"
BROKEN: Final = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile, NotImplementedError)


@dataclass(frozen=True)
class Entry:
    """A file of an archive. `open` gives its content, `size_bytes` long at most."""

    path: PurePosixPath
    size_bytes: int
    open: Callable[[], IO[bytes]]


def unpack_archive(archive: Path, name: str, folder: Path, settings: Settings, report: Report) -> None:
    """Copies the checkpoint in a .tar, .tar.gz or .zip into `folder`. What the file is, its content says.

    Raises UnsafeArchive or PickleCheckpoint (which entry), SourceNotFound without a checkpoint, CorruptCheckpoint,
    or DiskFull.
    """
    try:
        with archive.open("rb") as file, _opened(file) as entries:
            chosen = _choose(list(_checked(entries, settings)), name)
            total = sum(entry.size_bytes for entry in chosen.values())
            require_free_disk(folder, total, settings.min_free_disk_bytes)
            _copy(chosen, folder, lambda done: report(done / max(total, 1), f"unpacking {name}"))
    except BROKEN as error:
        raise CorruptCheckpoint(
            f"{name!r} is no whole .tar, .tar.gz or .zip archive ({error}); pack and upload it again", param="model"
        ) from error


@contextmanager
def _opened(file: IO[bytes]) -> Iterator[Iterator[Entry]]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield _zip_entries(archive)
        return
    file.seek(0)
    compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    file.seek(0)
    stream: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=file) if compressed else file
    reads = BoundedReads(stream)
    with tarfile.open(fileobj=reads, mode="r:") as tar:  # type: ignore[call-overload]  # what it calls
        yield _tar_entries(tar, reads)


class BoundedReads:
    """The part of a file that tarfile calls, with limits on what its headers make it read."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        self.stream = stream
        self.left = MAX_HEADER_BYTES
        self.in_headers = True
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if self.in_headers and size > BLOCK_BYTES:
            self.left -= size
            if size > MAX_READ_BYTES or self.left < 0:
                raise UnsafeArchive(f"the archive has a header of {size} bytes; pack it again", param="model")
        return self.stream.read(size)


def _zip_entries(archive: zipfile.ZipFile) -> Iterator[Entry]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            _refuse(info.filename, "is a link or a device")
        if info.flag_bits & 1:
            _refuse(info.filename, "is encrypted")
        if not info.is_dir():
            yield Entry(_safe_path(info.filename), info.file_size, partial(archive.open, info))


def _tar_entries(tar: tarfile.TarFile, reads: BoundedReads) -> Iterator[Entry]:
    for member in tar:
        if member.isdir():
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            _refuse(member.name, "is a link, a device or a sparse file")
        yield Entry(_safe_path(member.name), member.size, partial(_tar_file, tar, member))
    reads.in_headers = False  # all of them are read: what comes now is content


def _tar_file(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # noqa: S101 -- it has some for every plain file
    return content


def _safe_path(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable():
        _refuse(name, "has a path that could lead out of a folder")
    return path


def _refuse(name: str, why: str) -> None:
    raise UnsafeArchive(
        f"entry {name!r} of the archive {why}; pack only the plain files of a checkpoint's folder", param="model"
    )


def _checked(entries: Iterator[Entry], settings: Settings) -> Iterator[Entry]:
    """Passes entries on while their number and their unpacked size stay within the limits."""
    unpacked = 0
    for number, entry in enumerate(entries, start=1):
        unpacked += entry.size_bytes
        if number > MAX_ENTRIES:
            raise UnsafeArchive(f"the archive has more than {MAX_ENTRIES} files; pack one checkpoint", param="model")
        if unpacked > settings.max_unpacked_bytes:
            raise UnsafeArchive(
                f"the archive unpacks to more than {settings.max_unpacked_bytes} bytes, at entry {str(entry.path)!r}; "
                "pack one checkpoint, or set BITMILL_MAX_UNPACKED_BYTES higher",
                param="model",
            )
        if entry.path.name.lower().endswith(PICKLE_SUFFIXES):
            raise PickleCheckpoint(
                f"entry {str(entry.path)!r} of the archive is a pickle, which can run code when it is read; leave it "
                "out, and save weights as safetensors with transformers' save_pretrained",
                param="model",
            )
        yield entry


def _choose(entries: list[Entry], name: str) -> dict[str, Entry]:
    """The model's files by name: those beside config.json, at the top or in the single folder that there is."""
    visible = [entry for entry in entries if not _is_ignored(entry.path)]
    parents = {entry.path.parent for entry in visible if entry.path.name == CONFIG}
    tops = {entry.path.parts[0] for entry in visible}
    root = PurePosixPath()
    if root not in parents and len(tops) == 1:
        root = PurePosixPath(next(iter(tops)))
    if root not in parents:
        raise SourceNotFound(
            f"archive {name!r} has no {CONFIG} at its top or in its single folder; pack the folder of a Hugging Face "
            "checkpoint, and upload a .gguf file as it is",
            param="model",
        )
    chosen: dict[str, Entry] = {}
    for entry in visible:
        if entry.path.parent == root and entry.path.name.endswith(MODEL_FILE_SUFFIXES):
            if entry.path.name in chosen:
                _refuse(str(entry.path), "is there twice")
            chosen[entry.path.name] = entry
    return chosen


def _is_ignored(path: PurePosixPath) -> bool:
    return path.parts[0] == IGNORED_FOLDER or any(part.startswith(".") for part in path.parts)


def _copy(chosen: dict[str, Entry], folder: Path, report: Callable[[int], None]) -> None:
    done = 0
    for name, entry in chosen.items():
        with entry.open() as source, (folder / name).open("xb") as target:
            while data := source.read(COPY_BYTES):
                target.write(data)
                done += len(data)
                report(done)
