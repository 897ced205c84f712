"""Reads and checks the header of a safetensors file without any ML library.

The format (https://github.com/huggingface/safetensors#format): 8 bytes with the header's length N as a
little-endian integer, N bytes of JSON from tensor names to dtype, shape and offsets, then the data, which the
tensors must fill without holes or overlaps.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn

from app.domain.errors import CorruptCheckpoint

LENGTH_BYTES: Final = 8
MAX_HEADER_BYTES: Final = 100_000_000

DTYPE_BITS: Final = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: bytes `start` to `end` (exclusive) of `file`, counted from its beginning."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int


def read_tensor_infos(file: Path) -> dict[str, TensorInfo]:
    """Every tensor of one safetensors file, in the file's order. Raises CorruptCheckpoint."""
    try:
        size = file.stat().st_size
        text = _read_header(file, size)
    except OSError as error:
        _fail(file, f"cannot be read ({error.strerror}); make it readable to the user that runs Bitmill")
    infos = parse_tensor_infos(file, text)
    _check_coverage(file, infos, LENGTH_BYTES + len(text), size)
    return infos


def parse_tensor_infos(file: Path, text: bytes) -> dict[str, TensorInfo]:
    """Every tensor that the header `text` of a file names, wherever it was read from. Raises CorruptCheckpoint."""
    data_start = LENGTH_BYTES + len(text)
    return {
        name: _tensor_info(file, name, entry, data_start)
        for name, entry in _parse_header(file, text).items()
        if name != "__metadata__"
    }


def _fail(file: Path, problem: str) -> NoReturn:
    raise CorruptCheckpoint(f"{file.name} {problem}", param="model")


def _read_header(file: Path, size: int) -> bytes:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > size - LENGTH_BYTES:
            _fail(
                file,
                f"has {size} bytes, too few for its {LENGTH_BYTES}-byte length and a header of {length} "
                "bytes; it is truncated or no safetensors file: copy or download it again",
            )
        if length > MAX_HEADER_BYTES:
            _fail(file, f"has a header of {length} bytes, over the format's limit of {MAX_HEADER_BYTES}")
        return stream.read(length)


def _parse_header(file: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _fail(file, f"has an invalid header ({error}); copy or download it again")
    if not isinstance(header, dict):
        _fail(file, f"has a header that is a JSON {type(header).__name__}, not an object; download it again")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"duplicate key {next(key for key in keys if keys.count(key) > 1)!r}")
    return result


def _tensor_info(file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if _all_sizes(
            [*shape, begin, end]
        ):
            info = TensorInfo(dtype, tuple(shape), file, data_start + begin, data_start + end)
        case _:
            _fail(file, f"gives tensor {name!r} no valid dtype, shape and data_offsets; download it again")
    _check_size(name, info)
    return info


def _all_sizes(values: list[Any]) -> bool:
    # bool is an int to isinstance, but `true` is no size.
    return all(type(value) is int and value >= 0 for value in values)


def _check_size(name: str, info: TensorInfo) -> None:
    if info.dtype not in DTYPE_BITS:
        known = ", ".join(DTYPE_BITS)
        _fail(info.file, f"gives tensor {name!r} the unknown dtype {info.dtype!r}; the format has {known}")
    bits = math.prod(info.shape) * DTYPE_BITS[info.dtype]
    if bits != (info.end - info.start) * 8:
        _fail(
            info.file,
            f"gives tensor {name!r} {info.end - info.start} bytes, but {info.dtype} of shape "
            f"{list(info.shape)} takes {bits / 8:g}; download it again",
        )


def _check_coverage(file: Path, infos: dict[str, TensorInfo], data_start: int, size: int) -> None:
    ordered = sorted(infos.items(), key=lambda item: (item[1].start, item[1].end))
    edges = [("the header", data_start, data_start)]
    edges += [(f"tensor {name!r}", info.start, info.end) for name, info in ordered]
    edges += [("the end of the file", size, size)]
    for (before, _, end), (after, start, _) in pairwise(edges):
        if start < end:
            _fail(
                file,
                f"is damaged: {before} ends at byte {end}, but {after} is at byte {start}; it is truncated "
                "or its tensors overlap: copy or download it again",
            )
        if start > end:
            _fail(file, f"is damaged: bytes {end} to {start} belong to no tensor; download it again")
