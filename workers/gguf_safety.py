"""Reads a GGUF file's keys, and looks at its counts before anything is allocated for what they claim.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
# How each kind of number is stored; a string (8) and an array (9) say themselves how long they are.
LAYOUTS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
STRING: Final = 8
ARRAY: Final = 9
# The least that a key, or a tensor, takes in a file.
LEAST_KEY_BYTES: Final = 13
LEAST_TENSOR_BYTES: Final = 32
# Arrays of numbers up to this length are read; of longer ones, and of texts, only the length.
LONGEST_ARRAY: Final = 1024


def require_plausible_counts(path: Path) -> None:
    """Raises ValueError where a count claims more than the file can hold."""
    read_keys(path)


def read_keys(path: Path) -> dict[str, Any]:
    """Every key with its value; of a long array, or one of texts, the length. Tensors are not touched.

    Raises ValueError where the file is no GGUF file, or claims more than it can hold.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version, tensors, keys = struct.unpack("<IQQ", _read(file, 20))
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}; versions 2 and 3 can be read")
        if keys * LEAST_KEY_BYTES > size or tensors * LEAST_TENSOR_BYTES > size:
            raise ValueError(f"it claims {keys} keys and {tensors} tensors in {size} bytes")
        return {_string(file, size): _value(file, int(_number(file, "<I")), size) for _ in range(keys)}


def _value(file: BinaryIO, kind: int, size: int) -> Any:
    if kind == STRING:
        return _string(file, size)
    if kind == ARRAY:
        return _array(file, size)
    if kind in LAYOUTS:
        return _number(file, LAYOUTS[kind])
    raise ValueError(f"it holds a value of the unknown kind {kind}")


def _array(file: BinaryIO, size: int) -> list[Any] | int:
    kind, count = int(_number(file, "<I")), int(_number(file, "<Q"))
    each = struct.calcsize(LAYOUTS[kind]) if kind in LAYOUTS else 8
    if kind == ARRAY or count * each > size - file.tell():
        raise ValueError(f"it claims an array of {count} values of kind {kind} in {size} bytes")
    if kind not in LAYOUTS:
        for _ in range(count):
            _skip_string(file, kind, size)
        return count
    if count > LONGEST_ARRAY:
        file.seek(count * each, 1)
        return count
    return [_number(file, LAYOUTS[kind]) for _ in range(count)]


def _skip_string(file: BinaryIO, kind: int, size: int) -> None:
    if kind != STRING:
        raise ValueError(f"it holds a value of the unknown kind {kind}")
    file.seek(_length(file, size), 1)


def _string(file: BinaryIO, size: int) -> str:
    return _read(file, _length(file, size)).decode(errors="replace")


def _length(file: BinaryIO, size: int) -> int:
    length = int(_number(file, "<Q"))
    if length > size - file.tell():
        raise ValueError(f"it claims a text of {length} bytes in {size} bytes")
    return length


def _number(file: BinaryIO, layout: str) -> Any:
    return struct.unpack(layout, _read(file, struct.calcsize(layout)))[0]


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise ValueError("it ends inside its keys")
    return data
