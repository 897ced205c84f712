"""Weights at the ends of types' ranges: too large for what they become, or nothing but zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from app.domain.artifacts import QuantizationReport
from app.domain.errors import IncompatibleModel
from app.domain.quantization.catalog import parse_method
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.run import RecordingRun
from workers.quantization.methods.bitsandbytes import _int8
from workers.quantization.registry import load_method

DOWN = "model.layers.1.mlp.down_proj.weight"
EMBEDDINGS = "model.embed_tokens.weight"
FEW = {"samples": 4, "sequence_length": 32}
# Of fp16 somewhere: in their arithmetic, in what is left as it is, or in their scales.
NARROW: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"type": "none", "dtype": "fp16"}, DOWN),
    "int8": ({"type": "bitsandbytes", "quantization": "int8"}, DOWN),
    "nf4": ({"type": "bitsandbytes", "compute_dtype": "fp16"}, DOWN),
    "nf4-kept": ({"type": "bitsandbytes", "compute_dtype": "fp16"}, EMBEDDINGS),
    "gguf": ({"type": "gguf", "quantization": "F16"}, "blk.1.ffn_down.weight"),
}
STREAMED: dict[str, dict[str, Any]] = {
    "nf4": {"type": "bitsandbytes"},
    "nf4-double": {"type": "bitsandbytes", "double_quant": True},
    "bnb-fp4": {"type": "bitsandbytes", "quantization": "fp4"},
    "bnb-int8": {"type": "bitsandbytes", "quantization": "int8"},
    "fp8": {"type": "fp8"},
    "fp8-block": {"type": "fp8", "granularity": "block"},
    "fp8-e5m2": {"type": "fp8", "format": "e5m2", "activations": "none"},
    "nvfp4": {"type": "fp4", "format": "nvfp4"},
    "mxfp4": {"type": "fp4", "format": "mxfp4"},
    "int8": {"type": "int8"},
    "int8-smooth": {"type": "int8", "smoothing": 0.5, "algorithm": "gptq", "calibration": FEW},
    "int4": {"type": "int4"},
    "int4-asymmetric": {"type": "int4", "symmetric": False, "group_size": 32},
    "int4-gptq": {"type": "int4", "algorithm": "gptq", "group_size": 64, "calibration": FEW},
    "gptq": {"type": "gptq", "group_size": 64, "calibration": FEW},
    "gptq-row": {"type": "gptq", "group_size": -1, "calibration": FEW},
    "awq": {"type": "awq", "group_size": 64, "calibration": FEW},
    "hqq": {"type": "hqq"},
}


def changed(folder: Path, name: str, change: Any, dtype: torch.dtype = torch.bfloat16) -> Checkpoint:
    """A model one of whose tensors `change` has changed in place, in float32."""
    file = tiny_llama(folder, hidden_size=128, intermediate_size=256) / "model.safetensors"
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    change(tensors[name])
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, file, {"format": "pt"})
    return inspect_checkpoint(folder)


def quantize(source: Checkpoint, method: dict[str, Any], target: Path) -> QuantizationReport:
    if method["type"] == "hqq":
        pytest.importorskip("hqq")
    spec, params = parse_method(method)
    target.mkdir()
    return load_method(spec.name).quantize(source, target, params, RecordingRun(source, target.parent / "stages"))


def set_one(weight: torch.Tensor) -> None:
    weight[3, 5] = -70000.0


def set_zeros(weight: torch.Tensor) -> None:
    weight[3] = 0
    weight[:, 64:128] = 0


@pytest.mark.parametrize("name", NARROW)
def test_a_weight_beyond_the_range_is_refused_by_its_tensors_name(name: str, tmp_path: Path) -> None:
    method, said = NARROW[name]
    tensor = EMBEDDINGS if said == EMBEDDINGS else DOWN
    source = changed(tmp_path / "model", tensor, set_one)
    with pytest.raises(IncompatibleModel, match=rf"{said} holds 70144, beyond the range of ±65504"):
        quantize(source, method, tmp_path / "artifact")


def test_a_scale_beyond_the_range_is_refused(tmp_path: Path) -> None:
    """GPTQ's layout holds scales in 16 bits, of which 15 steps of this one have not enough."""

    def enlarge(weight: torch.Tensor) -> None:
        weight[3] = 1e7

    source = changed(tmp_path / "model", DOWN, enlarge)
    with pytest.raises(IncompatibleModel, match=r"down_proj.scales is too large for torch.float16"):
        quantize(source, STREAMED["gptq"], tmp_path / "artifact")


def test_usual_weights_become_what_the_library_makes_of_them() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    from bitsandbytes.nn import Int8Params

    theirs = Int8Params(weight.clone(), requires_grad=False).to("cpu")
    ours = dict(_int8("layer.weight", weight))
    assert torch.equal(ours["layer.weight"], theirs.CB)
    assert torch.equal(ours["layer.SCB"], theirs.SCB)


@pytest.mark.parametrize("name", STREAMED)
def test_rows_and_groups_of_zeros_stay_zeros(name: str, tmp_path: Path) -> None:
    source = changed(tmp_path / "model", DOWN, set_zeros)
    quantize(source, STREAMED[name], tmp_path / "artifact")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact", dtype="auto").eval()
    layer = model.model.layers[1].mlp.down_proj
    with torch.inference_mode():
        assert model(torch.arange(16)[None]).logits.isfinite().all()
        out = layer(torch.ones(1, 256, dtype=next(model.parameters()).dtype))
    assert out.isfinite().all()
    assert out[0, 3] == 0


@pytest.mark.parametrize("format_", ["nvfp4", "mxfp4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_fp4_of_any_type_runs_in_the_type_that_it_is_unpacked_to(
    format_: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = changed(tmp_path / "model", DOWN, lambda weight: None, dtype)
    quantize(source, {"type": "fp4", "format": format_}, tmp_path / "artifact")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact", dtype="auto").eval()
    assert {parameter.dtype for name, parameter in model.named_parameters() if "norm" in name} == {torch.bfloat16}
    with torch.inference_mode():
        assert model(torch.arange(16)[None]).logits.isfinite().all()
