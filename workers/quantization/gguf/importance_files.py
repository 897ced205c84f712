"""Reads importance matrices: our own, and those that users made with llama.cpp's llama-imatrix.

Two formats: a GGUF of type `imatrix`, and the older `.dat`, a list of (name, calls, sums of mean squares) without a
magic number: https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/README.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader

from app.domain.errors import InvalidParameter
from workers.gguf_safety import require_plausible_counts

Importance = dict[str, npt.NDArray[np.float32]]

MAGIC: Final = b"GGUF"
SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"
# Bounds on what a .dat may claim of itself; without a magic number any file would look like one.
MAX_ENTRIES: Final = 100_000
MAX_NAME_BYTES: Final = 1024
MAX_VALUES: Final = 2**28


def read_importance(path: Path) -> Importance:
    """Mean squares per column, by GGUF tensor name. Raises InvalidParameter for a file of another kind."""
    with path.open("rb") as file:
        is_gguf = file.read(len(MAGIC)) == MAGIC
    try:
        found = _read_gguf(path) if is_gguf else _read_dat(path)
    except (ValueError, IndexError) as error:  # gguf-py meets the end of a file with either
        raise _no_matrix(path, str(error)) from error
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise _no_matrix(path, f"the values of {name} are not finite")
    return found


def _read_gguf(path: Path) -> Importance:
    require_plausible_counts(path)
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    if not names:
        raise ValueError(f"it holds no tensor that ends in {SUMS}")
    return {name: _mean(tensors[name + SUMS], tensors[name + COUNTS]) for name in names if name + COUNTS in tensors}


def _mean(sums: npt.NDArray[np.float32], counts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(experts, columns) sums by (experts, 1) counts, flattened; an expert that saw nothing weighs all alike."""
    sums, counts = np.atleast_2d(sums), counts.reshape(-1, 1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
    return np.ascontiguousarray(means.ravel(), dtype=np.float32)


def _read_dat(path: Path) -> Importance:
    with path.open("rb") as file:
        count = _integer(file, 1, MAX_ENTRIES)
        return dict(_read_entry(file) for _ in range(count))


def _read_entry(file: BinaryIO) -> tuple[str, npt.NDArray[np.float32]]:
    """int32 length, name, int32 calls, int32 columns, float32 per column: the mean square times the calls."""
    name = _exactly(file, _integer(file, 1, MAX_NAME_BYTES)).decode()
    calls = _integer(file, 0, 2**31 - 1)
    values = np.frombuffer(_exactly(file, 4 * _integer(file, 1, MAX_VALUES)), dtype="<f4")
    return name, np.ascontiguousarray(values / max(calls, 1), dtype=np.float32)


def _integer(file: BinaryIO, least: int, most: int) -> int:
    value: int = struct.unpack("<i", _exactly(file, 4))[0]
    if not least <= value <= most:
        raise ValueError(f"byte {file.tell() - 4} gives {value} where {least} to {most} is possible")
    return value


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError(f"it ends after {file.tell()} bytes, inside an entry")
    return data


def _no_matrix(path: Path, reason: str) -> InvalidParameter:
    return InvalidParameter(
        f"{path.name} is no importance matrix ({reason}); make one with llama-imatrix, or leave importance_matrix "
        f"at 'auto'",
        param="method.importance_matrix",
    )
