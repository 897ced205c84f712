"""Counts that a file cannot hold are found before anything is allocated for them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from workers.gguf_safety import LONGEST_ARRAY, read_keys, require_plausible_counts


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def write(path: Path, keys: list[bytes], *, tensors: int = 0, count: int | None = None, version: int = 3) -> Path:
    header = b"GGUF" + struct.pack("<IQQ", version, tensors, len(keys) if count is None else count)
    path.write_bytes(header + b"".join(keys))
    return path


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def test_a_whole_file_passes(tmp_path: Path) -> None:
    words = struct.pack("<IQ", 8, 2) + text(b"mill") + text(b"stone")
    numbers = struct.pack("<IQ", 5, 3) + struct.pack("<iii", 1, 2, 3)
    keys = [key(b"name", 8, text(b"x")), key(b"words", 9, words), key(b"numbers", 9, numbers), key(b"flag", 7, b"\1")]
    require_plausible_counts(write(tmp_path / "whole.gguf", keys))


def test_keys_are_read_and_long_arrays_counted(tmp_path: Path) -> None:
    words = struct.pack("<IQ", 8, 2) + text(b"mill") + text(b"stone")
    short = struct.pack("<IQ", 5, 3) + struct.pack("<iii", 1, -2, 3)
    long = struct.pack("<IQ", 0, LONGEST_ARRAY + 1) + bytes(LONGEST_ARRAY + 1)
    keys = [
        key(b"name", 8, text("Mühle".encode())), key(b"words", 9, words), key(b"short", 9, short),
        key(b"long", 9, long), key(b"flag", 7, b"\1"), key(b"layers", 4, struct.pack("<I", 30)),
    ]  # fmt: skip
    assert read_keys(write(tmp_path / "keys.gguf", keys)) == {
        "name": "Mühle", "words": 2, "short": [1, -2, 3], "long": LONGEST_ARRAY + 1, "flag": True, "layers": 30,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "given", "reason"),
    [
        ([key(b"a", 9, struct.pack("<IQ", 0, 2**40))], {}, "an array of 1099511627776 values"),
        ([key(b"a", 9, struct.pack("<IQ", 9, 1))], {}, "an array of 1 values of kind 9"),
        ([key(b"a", 9, struct.pack("<IQ", 8, 2**30))], {}, "an array of 1073741824 values"),
        ([key(b"a", 8, struct.pack("<Q", 2**50))], {}, "a text of"),
        ([key(b"a", 99, b"")], {}, "unknown kind 99"),
        ([], {"count": 2**32}, "keys and 0 tensors"),
        ([], {"tensors": 2**32}, "keys and 4294967296 tensors"),
        ([], {"count": 1}, "keys"),
        ([], {"version": 7}, "version is 7"),
    ],
)
def test_a_count_beyond_the_file_is_refused(
    keys: list[bytes], given: dict[str, int], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        require_plausible_counts(write(tmp_path / "bad.gguf", keys, **given))  # type: ignore[arg-type]
