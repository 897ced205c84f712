"""A GGUF file's tensors, read past its vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from workers.quantization.gguf.header import HeaderReader


@pytest.fixture
def file(tmp_path: Path) -> Path:
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(3)
    writer.add_token_list(["grain", "", "Zürich", "日本"])
    writer.add_token_types([1, 1, 2, 3])
    writer.add_array("numbers", [0.5, 1.5])
    writer.add_name("after the arrays")
    writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 32), dtype=np.float32))
    packed = np.zeros((2, 34), dtype=np.uint8)
    writer.add_tensor("output.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def described(reader: GGUFReader) -> list[tuple[Any, ...]]:
    return [
        (tensor.name, tensor.tensor_type, list(tensor.shape), tensor.n_elements, tensor.n_bytes, tensor.data_offset)
        for tensor in reader.tensors
    ]


def test_tensors_and_single_values_are_what_the_whole_reader_finds(file: Path) -> None:
    ours, whole = HeaderReader(file), GGUFReader(file)
    assert described(ours) == described(whole)
    assert len(ours.tensors) == 2
    assert set(ours.fields) == set(whole.fields)
    for key in ("general.architecture", "general.name", "llama.block_count"):
        assert ours.fields[key].contents() == whole.fields[key].contents()
