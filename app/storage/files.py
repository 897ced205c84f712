"""Uploaded files on disk: written beside their place, hashed on the way, published by one rename."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol
from uuid import uuid4

from app.domain.errors import DiskFull, UploadTooLarge
from app.settings import Settings
from app.storage.artifacts import require_free_disk, sync

PARTIAL_SUFFIX: Final = ".partial"
CHECK_BYTES: Final = 64 * 1024**2


class Stored(Protocol):
    """What the store has to know of a file."""

    @property
    def id(self) -> str: ...


def locate(row: Stored, settings: Settings) -> Path:
    """Where an uploaded file's content lies."""
    return settings.files_folder / row.id


class StagedFile:
    """A file that is still being received. Leaving its `with` block removes it unless it was published.

    It grows in the files folder itself, so that publishing is a rename and never a copy.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.size_bytes = 0
        self._unchecked = 0
        self._digest = hashlib.sha256()
        settings.files_folder.mkdir(parents=True, exist_ok=True)
        self.path = settings.files_folder / f".{uuid4().hex}{PARTIAL_SUFFIX}"
        # Unbuffered: a buffer's rest would be written by `close`, which must not fail for want of room.
        self._file = self.path.open("xb", buffering=0)

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Raises UploadTooLarge instead of passing the limit, and DiskFull."""
        self.size_bytes += len(data)
        require_size(self.size_bytes, self.settings)
        self._require_room(len(data))
        self._digest.update(data)
        rest = memoryview(data)
        with _full_disk_told():
            while rest:
                rest = rest[self._file.write(rest) :]

    def _require_room(self, count: int) -> None:
        """Now and then: an upload need not say beforehand how large it is."""
        self._unchecked += count
        if self._unchecked >= CHECK_BYTES:
            self._unchecked = 0
            require_free_disk(self.settings.files_folder, 0, self.settings.min_free_disk_bytes)

    def publish(self, row: Stored) -> Path:
        """Puts the whole file under its row's id, safely on disk. Raises DiskFull."""
        with _full_disk_told():
            os.fsync(self._file.fileno())
        # Workers may run as another user.
        self.path.chmod(0o644)
        target = locate(row, self.settings)
        self.path.rename(target)
        sync(target.parent)
        return target


def require_size(size_bytes: int, settings: Settings) -> None:
    """Raises UploadTooLarge for a file of at least `size_bytes`."""
    limit = settings.max_upload_bytes
    if size_bytes > limit:
        raise UploadTooLarge(
            f"the file has more than the {limit} bytes that one may have; send a smaller one, set "
            "BITMILL_MAX_UPLOAD_BYTES higher, or put the model into a folder of BITMILL_SOURCE_ROOTS",
            param="file",
        )


def remove_broken_uploads(settings: Settings, *, older_than: float) -> list[str]:
    """Deletes what uploads left that never ended, if the last byte came before `older_than`. Returns their names."""
    found = list(settings.files_folder.glob(f".*{PARTIAL_SUFFIX}"))
    return [path.name for path in found if _remove_if_older(path, older_than)]


def _remove_if_older(path: Path, moment: float) -> bool:
    try:
        if path.stat().st_mtime >= moment:
            return False
        path.unlink()
    except FileNotFoundError:
        return False  # another process was faster
    return True


@contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskFull.from_os_error(error) or error from error
