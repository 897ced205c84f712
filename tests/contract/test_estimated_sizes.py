"""Sizes that were estimated from headers against artifacts that were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.domain.quantization.catalog import parse_method
from app.domain.quantization.sizes import StoredTensor, estimate_weights
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.contract.test_methods import quantize
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.run import RecordingRun
from workers.quantization.gguf.llama_quantize import Recipe, quantize_file
from workers.quantization.methods.gguf import converted_file, read_report


def estimated(checkpoint: Checkpoint, method: dict[str, Any]) -> int:
    spec, params = parse_method(method)
    tensors = {
        name: StoredTensor(dtype=info.dtype, shape=info.shape, size_bytes=info.end - info.start)
        for name, info in checkpoint.tensors.items()
    }
    return estimate_weights(spec, params, tensors, checkpoint.config).total_bytes


# Rows of whole blocks with a head of its own, and, like the demo model's, rows that are not, with tied embeddings.
MODELS: dict[str, dict[str, Any]] = {
    "whole": {"hidden_size": 256, "intermediate_size": 512, "layers": 17, "heads": 4, "key_value_heads": 1},
    "ragged": {"hidden_size": 192, "intermediate_size": 512, "layers": 9, "heads": 6, "key_value_heads": 3,
               "tie_word_embeddings": True},
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("sized") / request.param
    return inspect_checkpoint(tiny_llama(folder, **MODELS[request.param]))


@pytest.mark.parametrize(
    "mix",
    ["Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
     "Q3_K_L", "Q3_K_M", "Q3_K_S", "F16"],
)  # fmt: skip
def test_gguf_mixes_are_llama_cpps(mix: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    run = RecordingRun(checkpoint, tmp_path / "stages")
    target = tmp_path / "model.gguf"
    quantize_file(converted_file(checkpoint, run), target, Recipe(mix), None, run)
    actual = read_report([target]).weight_bytes
    assert estimated(checkpoint, {"type": "gguf", "quantization": mix, "importance_matrix": "none"}) == pytest.approx(
        actual, rel=0.005
    )


@pytest.mark.parametrize(
    "method",
    [
        {"type": "none", "dtype": "fp32"},
        {"type": "bitsandbytes", "quantization": "int8"},
        {"type": "bitsandbytes"},
        {"type": "bitsandbytes", "double_quant": True},
        {"type": "fp8"},
        {"type": "int8"},
        {"type": "int4", "group_size": 64},
        {"type": "qat", "group_size": 64, "max_steps": 1, "calibration": {"samples": 1, "sequence_length": 16}},
        {"type": "int4", "group_size": 64, "symmetric": False},
        {"type": "fp4", "format": "nvfp4"},
        {"type": "fp4", "format": "mxfp4"},
        {"type": "gguf", "quantization": "Q4_0"},
        {"type": "gguf", "quantization": "IQ4_XS"},
    ],
)
def test_artifacts_are_as_large_as_estimated(method: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path) -> None:
    report, _ = quantize(checkpoint, method, tmp_path / "artifact")
    assert estimated(checkpoint, method) == pytest.approx(report.weight_bytes, rel=0.01)
