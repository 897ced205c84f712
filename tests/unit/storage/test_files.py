from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import pytest

from app.domain.errors import DiskFull, UploadTooLarge
from app.persistence.tables import FileRow
from app.settings import Settings
from app.storage.files import StagedFile, locate, remove_broken_uploads

ROW = FileRow(id="file-1", filename="a.txt", purpose="evaluation", size_bytes=6, sha256="", created_at=0.0)


def names(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.files_folder.iterdir())


def test_a_published_file_is_whole_and_readable_by_others(settings: Settings) -> None:
    with StagedFile(settings) as staged:
        staged.write(b"abc")
        staged.write(b"def")
        assert not locate(ROW, settings).exists()
        path = staged.publish(ROW)
    assert path == locate(ROW, settings)
    assert path.read_bytes() == b"abcdef"
    assert path.stat().st_mode & 0o777 == 0o644
    assert (staged.size_bytes, staged.sha256) == (6, hashlib.sha256(b"abcdef").hexdigest())
    assert names(settings) == ["file-1"]


def test_a_broken_upload_leaves_nothing(settings: Settings) -> None:
    def receive() -> None:
        with StagedFile(settings) as staged:
            staged.write(b"abc")
            assert len(names(settings)) == 1
            raise RuntimeError("the connection broke")

    with pytest.raises(RuntimeError, match="broke"):
        receive()
    assert names(settings) == []


def test_the_limit_is_reached_and_not_passed(settings: Settings) -> None:
    limited = settings.model_copy(update={"max_upload_bytes": 6})
    with StagedFile(limited) as staged:
        staged.write(b"abcdef")
        with pytest.raises(UploadTooLarge, match="6 bytes"):
            staged.write(b"g")
        assert staged.path.stat().st_size == 6


def test_a_write_that_finds_no_room_is_a_full_disk(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with StagedFile(settings) as staged, monkeypatch.context() as patched:
        patched.setattr(staged, "_file", FullDisk())
        with pytest.raises(DiskFull, match="no room was left"):
            staged.write(b"abc")
    assert names(settings) == []


def test_what_crashes_left_is_removed_when_it_is_old(settings: Settings) -> None:
    folder: Path = settings.files_folder
    folder.mkdir(parents=True)
    now = time.time()
    for name, age in ((".old.partial", 100), (".new.partial", 0), ("file-known", 100), ("file-stray", 100)):
        (folder / name).touch()
        os.utime(folder / name, (now - age, now - age))
    removed = remove_broken_uploads(settings, older_than=now - 50)
    assert removed == [".old.partial"]
    assert names(settings) == [".new.partial", "file-known", "file-stray"]
