"""Importance matrices in llama.cpp's two formats."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from app.domain.errors import InvalidParameter
from workers.quantization.gguf.importance_files import read_importance


def _dat(*entries: tuple[str, int, list[float]]) -> bytes:
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        data += struct.pack(f"<{len(values)}f", *values)
    return data


def test_a_dat_holds_means_times_calls(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(_dat(("blk.0.ffn_up.weight", 4, [8.0, 2.0]), ("blk.1.ffn_up.weight", 1, [3.0])) + b"\x07\0\0\0")
    found = read_importance(path)
    assert {name: values.tolist() for name, values in found.items()} == {
        "blk.0.ffn_up.weight": [2.0, 0.5],
        "blk.1.ffn_up.weight": [3.0],
    }


def test_a_gguf_holds_sums_and_counts_per_expert(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    writer = GGUFWriter(path, arch="imatrix")
    writer.add_tensor("blk.0.ffn_up_exps.weight.in_sum2", np.array([[8.0, 2.0], [5.0, 5.0]], dtype=np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight.counts", np.array([[4.0], [0.0]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_importance(path)["blk.0.ffn_up_exps.weight"].tolist() == [2.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "ends after 0 bytes"),
        (b"plain text, not a matrix", "where 1 to"),
        (b"GGUF", "no importance matrix"),
        (_dat(("blk.0.ffn_up.weight", 4, [8.0, 2.0]))[:-2], "inside an entry"),
        (_dat(("blk.0.ffn_up.weight", 1, [float("nan")])), "not finite"),
    ],
)
def test_anything_else_is_refused_with_a_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "matrix"
    path.write_bytes(content)
    with pytest.raises(InvalidParameter, match=reason):
        read_importance(path)
