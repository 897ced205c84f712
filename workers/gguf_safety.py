"""Looks at a GGUF file's counts before a library allocates what they claim.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
# Bytes of each kind of value; a string (8) and an array (9) say themselves how long they are.
VALUE_BYTES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING: Final = 8
ARRAY: Final = 9
# The least that a key, or a tensor, takes in a file.
LEAST_KEY_BYTES: Final = 13
LEAST_TENSOR_BYTES: Final = 32


def require_plausible_counts(path: Path) -> None:
    """Walks over all keys. Raises ValueError where a count claims more than the file can hold."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version, tensors, keys = struct.unpack("<IQQ", _read(file, 20))
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}; versions 2 and 3 can be read")
        if keys * LEAST_KEY_BYTES > size or tensors * LEAST_TENSOR_BYTES > size:
            raise ValueError(f"it claims {keys} keys and {tensors} tensors in {size} bytes")
        for _ in range(keys):
            _skip_string(file, size)
            _skip_value(file, _number(file, "<I"), size)


def _skip_value(file: BinaryIO, kind: int, size: int) -> None:
    if kind == STRING:
        _skip_string(file, size)
    elif kind == ARRAY:
        _skip_array(file, size)
    elif kind in VALUE_BYTES:
        file.seek(VALUE_BYTES[kind], 1)
    else:
        raise ValueError(f"it holds a value of the unknown kind {kind}")


def _skip_array(file: BinaryIO, size: int) -> None:
    kind, count = _number(file, "<I"), _number(file, "<Q")
    least = VALUE_BYTES.get(kind, 8)
    if kind == ARRAY or count * least > size - file.tell():
        raise ValueError(f"it claims an array of {count} values of kind {kind} in {size} bytes")
    if kind in VALUE_BYTES:
        file.seek(count * least, 1)
        return
    for _ in range(count):
        _skip_value(file, kind, size)


def _skip_string(file: BinaryIO, size: int) -> None:
    length = _number(file, "<Q")
    if length > size - file.tell():
        raise ValueError(f"it claims a text of {length} bytes in {size} bytes")
    file.seek(length, 1)


def _number(file: BinaryIO, layout: str) -> int:
    return int(struct.unpack(layout, _read(file, struct.calcsize(layout)))[0])


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise ValueError("it ends inside its keys")
    return data
