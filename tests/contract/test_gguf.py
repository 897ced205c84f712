"""What the gguf method does beyond llama.cpp's mixes: overrides, parts, matrices of the user's."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from gguf import GGUFReader

from app.domain.errors import InvalidParameter, QuantizationFailed, UnsupportedArchitecture
from app.domain.quantization.methods.gguf import EdgeTensorType, TensorType
from app.settings import Settings
from app.storage.artifacts import gguf_file
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.contract.test_methods import prove, quantize
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.run import RecordingRun
from workers.evaluation.scorers.gguf import GgufScorer
from workers.quantization.gguf.llama_quantize import Recipe, quantize_file
from workers.quantization.methods.gguf import converted_file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return inspect_checkpoint(tiny_llama(folder, hidden_size=256, intermediate_size=512))


@pytest.fixture(scope="module")
def shared_run(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> RecordingRun:
    """Converts and calibrates once for all tests that use it."""
    return RecordingRun(checkpoint, tmp_path_factory.mktemp("shared-stages"))


@pytest.fixture
def run(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> RecordingRun:
    return RecordingRun(checkpoint, tmp_path_factory.mktemp("stages"))


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


def test_overrides_reach_the_tensors_they_name(checkpoint: Checkpoint, run: RecordingRun, tmp_path: Path) -> None:
    overrides: dict[str, Any] = {
        "output_type": "bf16",
        "embedding_type": "q5_1",
        "tensor_types": {r"blk\.0\.attn_v": "q8_0", "attn_v": "iq2_xs", "ffn_up": "nvfp4"},
    }
    quantize(checkpoint, {"type": "gguf", "quantization": "Q4_0", **overrides}, tmp_path / "made", run)
    found = types(tmp_path / "made" / "model.gguf")
    assert found["output.weight"] == "BF16"
    assert found["token_embd.weight"] == "Q5_1"
    assert found["blk.0.attn_v.weight"] == "Q8_0"
    assert found["blk.1.attn_v.weight"] == "IQ2_XS"
    assert found["blk.1.ffn_up.weight"] == "NVFP4"
    assert found["blk.1.ffn_down.weight"] == "Q4_0"


@pytest.mark.parametrize("name", get_args(get_args(TensorType)[0]))
def test_every_tensor_type_can_be_made_and_loaded(
    name: str, checkpoint: Checkpoint, shared_run: RecordingRun, tmp_path: Path
) -> None:
    method: dict[str, Any] = {"type": "gguf", "quantization": "Q8_0", "tensor_types": {"blk.0.ffn_up": name}}
    if name in get_args(get_args(EdgeTensorType)[0]):
        method |= {"output_type": name, "embedding_type": name}
    quantize(checkpoint, method, tmp_path / "made", shared_run)
    path = tmp_path / "made" / "model.gguf"
    found = types(path)
    assert found["blk.0.ffn_up.weight"] == name
    assert found["output.weight"] == found["token_embd.weight"] == (name if "output_type" in method else "Q8_0")
    with GgufScorer(path, 32) as scorer:
        assert np.isfinite(scorer.logits(np.arange(8), slice(7, 8))).all()


def test_an_unquantized_mix_takes_overrides_too(checkpoint: Checkpoint, run: RecordingRun, tmp_path: Path) -> None:
    method = {"type": "gguf", "quantization": "F32", "output_type": "q8_0"}
    quantize(checkpoint, method, tmp_path / "made", run)
    found = types(tmp_path / "made" / "model.gguf")
    assert found.pop("output.weight") == "Q8_0"
    assert set(found.values()) == {"F32"}


def test_an_expression_for_vectors_only_matches_nothing(
    checkpoint: Checkpoint, run: RecordingRun, tmp_path: Path
) -> None:
    method = {"type": "gguf", "tensor_types": {"attn_norm": "q8_0"}}
    with pytest.raises(InvalidParameter, match="'attn_norm' is found in no weight's name"):
        quantize(checkpoint, method, tmp_path / "made", run)


@pytest.mark.parametrize("mix", ["F16", "Q8_0"])
def test_parts_hold_the_same_model(
    mix: str, checkpoint: Checkpoint, run: RecordingRun, settings: Settings, tmp_path: Path
) -> None:
    limit = 600_000
    method = {"type": "gguf", "quantization": mix}
    whole, _ = quantize(checkpoint, method, tmp_path / "whole", run)
    split, output = quantize(checkpoint, {**method, "split_bytes": limit}, tmp_path / "split", run)
    parts = sorted((tmp_path / "split").iterdir())
    assert len(parts) > 1
    assert [part.name for part in parts] == [
        f"model-{number:05d}-of-{len(parts):05d}.gguf" for number in range(1, len(parts) + 1)
    ]
    assert all(part.stat().st_size <= limit for part in parts)
    assert split == whole
    window = np.arange(3, 35, dtype=np.int64)
    logits = []
    for folder in ("whole", "split"):
        path = gguf_file(tmp_path / folder)
        assert path is not None
        with GgufScorer(path, 32) as scorer:
            logits.append(scorer.logits(window, slice(16, 32)))
    assert np.array_equal(*logits)
    assert prove(checkpoint, tmp_path / "split", output, settings).kl_divergence.value < 1e-3


def test_a_part_may_hold_one_tensor_that_exceeds_the_limit(
    checkpoint: Checkpoint, run: RecordingRun, tmp_path: Path
) -> None:
    quantize(checkpoint, {"type": "gguf", "quantization": "F32", "split_bytes": 1024}, tmp_path / "split", run)
    parts = list((tmp_path / "split").iterdir())
    assert len(parts) == len(checkpoint.tensors)
    with GgufScorer(gguf_file(tmp_path / "split") or Path(), 32) as scorer:
        assert scorer.logits(np.arange(8), slice(7, 8)).shape == (1, 512)


def test_a_model_within_the_limit_stays_whole(checkpoint: Checkpoint, run: RecordingRun, tmp_path: Path) -> None:
    quantize(checkpoint, {"type": "gguf", "split_bytes": 10**9}, tmp_path / "made", run)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["model.gguf"]


def test_a_users_matrix_makes_what_the_computed_one_makes(
    checkpoint: Checkpoint, run: RecordingRun, tmp_path: Path
) -> None:
    """The matrix that a job computed, given to another as a user's."""
    quantize(checkpoint, {"type": "gguf", "quantization": "IQ2_XS"}, tmp_path / "computed", run)
    run.uploads["file-000000000000000000000001"] = next(run.stages.folder.glob("imatrix-*/imatrix.gguf"))
    method = {"type": "gguf", "quantization": "IQ2_XS", "importance_matrix": "file-000000000000000000000001"}
    quantize(checkpoint, method, tmp_path / "uploaded", run)
    files = [tmp_path / name / "model.gguf" for name in ("computed", "uploaded")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_missing_importance_is_told_in_llama_cpps_words(
    checkpoint: Checkpoint, run: RecordingRun, tmp_path: Path
) -> None:
    source = converted_file(checkpoint, run)
    with pytest.raises(QuantizationFailed, match="requires an imatrix"):
        quantize_file(source, tmp_path / "made.gguf", Recipe("IQ2_XS"), None, run)


CONVERTER = """
import sys
from dataclasses import replace
from pathlib import Path
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.run import RecordingRun
from workers.quantization.gguf.converter import convert
checkpoint = replace(inspect_checkpoint(Path(sys.argv[1])), architecture="LlamaForCausalLM")
convert(checkpoint, Path(sys.argv[2]), "BF16", RecordingRun(checkpoint, Path("unused")))
"""


def test_another_programs_conversion_is_quantized_and_proven(
    checkpoint: Checkpoint, settings: Settings, tmp_path: Path
) -> None:
    """The program is our own converter, behind the back of a method that does not know the architecture."""
    copy = shutil.copytree(checkpoint.path, tmp_path / "model")
    text = (copy / "config.json").read_text().replace("LlamaForCausalLM", "UnheardOfForCausalLM")
    (copy / "config.json").write_text(text)
    unknown = inspect_checkpoint(copy)
    method = {"type": "gguf", "quantization": "Q5_K_M"}
    with pytest.raises(UnsupportedArchitecture, match=r"UnheardOfForCausalLM.*BITMILL_GGUF_CONVERTER"):
        quantize(unknown, method, tmp_path / "refused", RecordingRun(unknown, tmp_path / "stages"))
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(CONVERTER)} {{source}} {{target}}"
    run = RecordingRun(unknown, tmp_path / "stages", gguf_converter=command)
    _, output = quantize(unknown, method, tmp_path / "made", run)
    assert run.built == ["gguf", "imatrix"]
    assert prove(unknown, tmp_path / "made", output, settings).kl_divergence.value < 0.05
