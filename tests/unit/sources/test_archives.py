"""Unpacking of uploaded archives: good ones in every form, and hostile ones of every kind."""

from __future__ import annotations

import gzip
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from app.domain.errors import (
    BitmillError,
    CorruptCheckpoint,
    DiskFull,
    PickleCheckpoint,
    SourceNotFound,
    UnsafeArchive,
)
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.archives import pack, write_tar, write_zip
from tests.fakes.checkpoints import bare_checkpoint
from workers.sources import archives
from workers.sources.archives import unpack_archive

CONFIG = ("config.json", b"{}")
ARCHIVES = ["model.tar", "model.tar.gz", "model.tgz", "model.zip"]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "inner" / "target"
    folder.mkdir(parents=True)
    return folder


def unpack(archive: Path, target: Path, settings: Settings, name: str = "upload") -> list[tuple[float, str]]:
    reports: list[tuple[float, str]] = []
    unpack_archive(archive, name, target, settings, lambda fraction, stage: reports.append((fraction, stage)))
    return reports


def refused(archive: Path, target: Path, settings: Settings, error: type[BitmillError]) -> str:
    """The message; nothing was written anywhere."""
    with pytest.raises(error) as caught:
        unpack(archive, target, settings)
    assert caught.value.param == "model"
    assert list(target.iterdir()) == []
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    return caught.value.message


def write(archive: Path, name: str, content: bytes = b"x") -> Path:
    """An archive, of either kind, of a config.json and one more entry."""
    entries = [CONFIG, (name, content)]
    return write_zip(archive, entries) if archive.suffix == ".zip" else write_tar(archive, entries)


@pytest.mark.parametrize("prefix", ["", "./", "tiny/", "./tiny/"])
@pytest.mark.parametrize("name", ARCHIVES)
def test_a_checkpoint_is_found_at_the_top_and_in_one_folder(
    tmp_path: Path, target: Path, settings: Settings, name: str, prefix: str
) -> None:
    folder = bare_checkpoint(tmp_path / "made")
    archive = pack(folder, tmp_path / name, prefix=prefix)
    # What an archive is, its content says: the upload has no such name on disk.
    reports = unpack(archive.rename(tmp_path / "file-1"), target, settings)
    assert inspect_checkpoint(target).tensors.keys() == inspect_checkpoint(folder).tensors.keys()
    assert (target / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert reports[-1][0] == 1.0


@pytest.mark.parametrize("name", ["model.tar.gz", "model.zip"])
def test_only_files_of_a_model_are_copied(tmp_path: Path, target: Path, settings: Settings, name: str) -> None:
    names = [
        "tiny/config.json", "tiny/tokenizer.json", "tiny/chat_template.jinja", "tiny/modeling_tiny.py", "tiny/run.sh",
        "tiny/README.md", "tiny/.git/config.json", "tiny/onnx/config.json", "__MACOSX/tiny/._config.json",
    ]  # fmt: skip
    entries = [(name, name.encode()) for name in names]
    archive = tmp_path / name
    unpack(write_zip(archive, entries) if name.endswith("zip") else write_tar(archive, entries), target, settings)
    assert sorted(path.name for path in target.iterdir()) == ["chat_template.jinja", "config.json", "tokenizer.json"]
    assert (target / "config.json").read_text() == "tiny/config.json"


@pytest.mark.parametrize("name", ["model.tar", "model.zip"])
def test_the_top_wins_over_a_folder(tmp_path: Path, target: Path, settings: Settings, name: str) -> None:
    unpack(write(tmp_path / name, "onnx/config.json"), target, settings)
    assert (target / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["model.tar", "model.tar.gz", "model.zip"])
@pytest.mark.parametrize(
    "path", ["../evil.json", "a/../../evil.json", "/etc/evil.json", "..\\evil.json", "C:\\evil.json", "a\nb.json"]
)
def test_paths_that_lead_out_are_refused(
    tmp_path: Path, target: Path, settings: Settings, name: str, path: str
) -> None:
    message = refused(write(tmp_path / name, path), target, settings, UnsafeArchive)
    assert repr(path) in message


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, target: Path, settings: Settings, kind: bytes) -> None:
    entry = tarfile.TarInfo("model.safetensors")
    entry.type, entry.linkname = kind, "/etc/passwd"
    archive = write_tar(tmp_path / "model.tar", [CONFIG, (entry, b"")])
    assert "'model.safetensors' of the archive is a link" in refused(archive, target, settings, UnsafeArchive)


def test_sparse_files_in_a_tar_are_refused(tmp_path: Path, target: Path, settings: Settings) -> None:
    entry = tarfile.TarInfo("model.safetensors")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**15),
                         "GNU.sparse.name": "model.safetensors"}  # fmt: skip
    archive = write_tar(tmp_path / "model.tar", [CONFIG, (entry, b"0\n" + bytes(510))])
    assert "sparse" in refused(archive, target, settings, UnsafeArchive)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, target: Path, settings: Settings, kind: int) -> None:
    entry = zipfile.ZipInfo("model.safetensors")
    entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
    archive = write_zip(tmp_path / "model.zip", [CONFIG, (entry, b"/etc/passwd")])
    assert "is a link or a device" in refused(archive, target, settings, UnsafeArchive)


def test_an_encrypted_zip_is_refused(tmp_path: Path, target: Path, settings: Settings) -> None:
    archive = write_zip(tmp_path / "model.zip", [CONFIG])
    data = bytearray(archive.read_bytes())
    data[6] |= 1  # the flags in the entry's own header, and in the central directory
    data[data.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(data)
    assert "is encrypted" in refused(archive, target, settings, UnsafeArchive)


@pytest.mark.parametrize("name", ["model.tar", "model.zip"])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".PKL"])
def test_pickles_are_refused_wherever_they_are(
    tmp_path: Path, target: Path, settings: Settings, name: str, suffix: str
) -> None:
    message = refused(write(tmp_path / name, f"deep/down/weights{suffix}"), target, settings, PickleCheckpoint)
    assert f"'deep/down/weights{suffix}'" in message


@pytest.mark.parametrize("name", ["model.tar.gz", "model.zip"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, target: Path, settings: Settings, name: str) -> None:
    limited = settings.model_copy(update={"max_unpacked_bytes": 10**6})
    archive = write(tmp_path / name, "README.md", bytes(10**6))  # it would not even be copied
    assert archive.stat().st_size < 10**4
    assert "BITMILL_MAX_UNPACKED_BYTES" in refused(archive, target, limited, UnsafeArchive)


def test_a_zip_that_lies_about_its_size_is_corrupt(tmp_path: Path, target: Path, settings: Settings) -> None:
    archive = write_zip(tmp_path / "model.zip", [("config.json", bytes(10**6))])
    data = bytearray(archive.read_bytes())
    start = data.index(b"PK\1\2")
    data[start + 24 : start + 28] = (10).to_bytes(4, "little")  # the size that the central directory states
    archive.write_bytes(data)
    with pytest.raises(CorruptCheckpoint):
        unpack(archive, target, settings)
    assert sum(path.stat().st_size for path in target.iterdir()) <= 10


def test_a_header_bomb_is_refused_before_it_fills_memory(tmp_path: Path, target: Path, settings: Settings) -> None:
    header = tarfile.TarInfo("extended")
    header.type, header.size = tarfile.XHDTYPE, archives.MAX_READ_BYTES * 4
    archive = tmp_path / "model.tar.gz"
    with gzip.open(archive, "wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT) + bytes(header.size))
    assert "header" in refused(archive, target, settings, UnsafeArchive)


def test_too_many_entries_are_refused(
    tmp_path: Path, target: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 10)
    archive = write_tar(tmp_path / "model.tar", [(f"{number}.json", b"") for number in range(11)])
    assert "more than 10 files" in refused(archive, target, settings, UnsafeArchive)


@pytest.mark.parametrize("name", ["model.tar", "model.zip"])
def test_an_entry_that_is_there_twice_is_refused(tmp_path: Path, target: Path, settings: Settings, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile itself warns of what is being built here
        archive = write(tmp_path / name, "config.json")
    assert "is there twice" in refused(archive, target, settings, UnsafeArchive)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, target: Path, settings: Settings) -> None:
    archive = write(tmp_path / "model.zip", "model.safetensors")
    with pytest.raises(DiskFull):
        unpack(archive, target, settings.model_copy(update={"min_free_disk_bytes": 10**18}))
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("names", [["a/config.json", "b/config.json"], ["a/b/config.json"], ["model.gguf"], []])
@pytest.mark.parametrize("name", ["model.tar", "model.zip"])
def test_an_archive_without_one_clear_checkpoint_says_what_to_pack(
    tmp_path: Path, target: Path, settings: Settings, name: str, names: list[str]
) -> None:
    entries = [(entry, b"{}") for entry in names]
    archive = tmp_path / name
    written = write_zip(archive, entries) if name.endswith("zip") else write_tar(archive, entries)
    assert "has no config.json at its top" in refused(written, target, settings, SourceNotFound)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_truncated_archive_is_corrupt(tmp_path: Path, target: Path, settings: Settings, name: str) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "config.json").write_bytes(bytes(range(256)) * 400)
    archive = pack(folder, tmp_path / name)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 3])
    assert "pack and upload it again" in refused(archive, target, settings, CorruptCheckpoint)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b", b"\x1f\x8bnonsense", b"PK\3\4", bytes(100)])
def test_what_is_no_archive_is_refused(tmp_path: Path, target: Path, settings: Settings, content: bytes) -> None:
    archive = tmp_path / "file-1"
    archive.write_bytes(content)
    refused(archive, target, settings, CorruptCheckpoint)
