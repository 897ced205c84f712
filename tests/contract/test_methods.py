"""Every method on tiny models: what it writes loads, has its types, and is proven by the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.artifacts import ArtifactFormat, QualityCard, QuantizationReport
from app.domain.quantization.catalog import CATALOG, parse_method
from app.domain.quantization.methods.gguf import BITS
from app.settings import Settings
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.run import RecordingRun
from workers.evaluation.proof import prove_artifact
from workers.quantization.registry import load_method

FEW = {"samples": 8, "sequence_length": 64}
RECIPES: dict[str, dict[str, Any]] = {
    "fp32": {"type": "none", "dtype": "fp32"},
    "fp16": {"type": "none", "dtype": "fp16"},
    "bf16": {"type": "none", "dtype": "bf16"},
    "int8": {"type": "bitsandbytes", "quantization": "int8"},
    "nf4": {"type": "bitsandbytes", "quantization": "nf4"},
    "nf4-dq": {"type": "bitsandbytes", "quantization": "nf4", "double_quant": True},
    "fp4": {"type": "bitsandbytes", "quantization": "fp4"},
    "nf4-skip": {"type": "bitsandbytes", "quantization": "nf4", "blocksize": 128, "skip_modules": ["down_proj"]},
    "int8-threshold": {"type": "bitsandbytes", "quantization": "int8", "threshold": 3.0},
    "fp8": {"type": "fp8"},
    "fp8-block": {"type": "fp8", "granularity": "block"},
    "fp8-w8a16": {"type": "fp8", "activations": "none"},
    "fp8-e5m2": {"type": "fp8", "format": "e5m2", "activations": "none"},
    "fp8-skip": {"type": "fp8", "skip_modules": ["model.layers.0", "o_proj"]},
    "nvfp4": {"type": "fp4", "format": "nvfp4"},
    "mxfp4": {"type": "fp4", "format": "mxfp4"},
    "int8-w8a8": {"type": "int8"},
    "int8-smooth": {"type": "int8", "smoothing": 0.5, "calibration": FEW},
    "int8-smooth-gptq": {"type": "int8", "smoothing": 0.8, "algorithm": "gptq", "calibration": FEW},
    "int4-w4a16": {"type": "int4"},
    "int4-asymmetric": {"type": "int4", "symmetric": False, "group_size": 32, "skip_modules": ["o_proj"]},
    "int4-row": {"type": "int4", "group_size": -1},
    "int4-gptq": {"type": "int4", "algorithm": "gptq", "group_size": 64, "calibration": FEW},
    "int4-gptq-asymmetric": {
        "type": "int4",
        "algorithm": "gptq",
        "symmetric": False,
        "activation_order": False,
        "calibration": FEW,
    },
    "gptq-4": {"type": "gptq", "group_size": 64, "calibration": FEW},
    "gptq-4-row": {"type": "gptq", "group_size": -1, "calibration": FEW},
    "gptq-row-in-groups": {
        "type": "gptq",
        "group_size": 64,
        "overrides": {"down_proj": {"group_size": -1}},
        "calibration": FEW,
    },
    "gptq-8-row": {"type": "gptq", "bits": 8, "group_size": -1, "activation_order": True, "calibration": FEW},
    "gptq-mixed": {
        "type": "gptq",
        "symmetric": False,
        "group_size": 32,
        "overrides": {"down_proj": {"bits": 8}, r"layers\.1\.self_attn": {"skip": True}},
        "calibration": FEW,
    },
    "gptq-head": {"type": "gptq", "group_size": 64, "lm_head": True, "calibration": FEW},
    "awq-4": {"type": "awq", "group_size": 64, "calibration": FEW},
    "hqq-8": {"type": "hqq", "bits": 8, "group_size": 128},
    "hqq-4": {"type": "hqq", "skip_modules": ["down_proj"]},
    "hqq-3": {"type": "hqq", "bits": 3, "group_size": 32},
    "hqq-2": {"type": "hqq", "bits": 2, "group_size": 16},
    "qat-w4a16": {"type": "qat", "group_size": 64, "max_steps": 2, "calibration": FEW},
    "qat-w4a8": {"type": "qat", "scheme": "int8-int4", "max_steps": 2, "skip_modules": ["o_proj"], "calibration": FEW},
    "autoround-4": {"type": "autoround", "group_size": 64, "iterations": 2, "calibration": FEW},
    "autoround-8": {"type": "autoround", "bits": 8, "group_size": 64, "iterations": 1, "calibration": FEW},
    "autoround-awq": {
        "type": "autoround",
        "layout": "awq",
        "symmetric": False,
        "group_size": 64,
        "iterations": 1,
        "calibration": FEW,
    },
} | {name: {"type": "gguf", "quantization": name} for name in BITS}
# What methods outside the extra `all` stand on: their recipes are skipped where it is missing.
OPTIONAL = {"hqq": "hqq", "autoround": "auto_round"}
# Mean KL divergence, in nats, that the type's rounding explains on this random model.
MOST_DIVERGENCE = {
    "fp32": 1e-4,
    "fp16": 1e-3,
    "bf16": 1e-4,
    "F32": 1e-3,
    "F16": 1e-3,
    "BF16": 1e-3,
    "Q8_0": 1e-3,
    # For models trained in such weights; any other loses most of what it was.
    "TQ1_0": 1.0,
    "TQ2_0": 1.0,
    "Q1_0": 1.0,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return inspect_checkpoint(tiny_llama(folder, hidden_size=256, intermediate_size=512, shards=2))


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model that itself repeats one token, as random ones in few bits do, so that the gate finds no fault in it."""
    folder = tmp_path_factory.mktemp("repeating") / "model"
    return inspect_checkpoint(
        tiny_llama(folder, hidden_size=256, intermediate_size=512, tie_word_embeddings=True, seed=1)
    )


@pytest.fixture(scope="module")
def shared_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One data folder for all recipes, so that the original is measured once."""
    return Settings(data_dir=tmp_path_factory.mktemp("data"), evaluation_context_length=64, evaluation_windows=2)


@pytest.fixture(scope="module")
def shared_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One stage store for all recipes, so that the model is converted and calibrated once."""
    return tmp_path_factory.mktemp("stages")


def quantize(
    checkpoint: Checkpoint, method: dict[str, Any], target: Path, run: RecordingRun | None = None
) -> tuple[QuantizationReport, ArtifactFormat]:
    spec, params = parse_method(method)
    if spec.name in OPTIONAL:
        pytest.importorskip(OPTIONAL[spec.name])
    target.mkdir()
    run = run or RecordingRun(checkpoint, target.parent / "stages")
    return load_method(spec.name).quantize(checkpoint, target, params, run), spec.output


def prove(checkpoint: Checkpoint, target: Path, output: ArtifactFormat, settings: Settings) -> QualityCard:
    return prove_artifact(checkpoint, "f" * 64, target, output, settings, lambda fraction, stage: None)


def test_every_method_has_recipes() -> None:
    assert {recipe["type"] for recipe in RECIPES.values()} == set(CATALOG)


@pytest.mark.parametrize("name", [name for name in RECIPES if BITS.get(name, 16) >= 4])
def test_a_method_makes_an_artifact_that_passes_the_gate(
    name: str, checkpoint: Checkpoint, shared_settings: Settings, shared_stages: Path, tmp_path: Path
) -> None:
    run = RecordingRun(checkpoint, shared_stages)
    run.checkpoints = tmp_path / "checkpoints"  # each recipe has its own to go on from
    report, output = quantize(checkpoint, RECIPES[name], tmp_path / "artifact", run)
    card = prove(checkpoint, tmp_path / "artifact", output, shared_settings)
    fractions = [fraction for fraction, _ in run.reports]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] <= 1
    assert report.parameter_count == checkpoint.parameter_count
    assert sum(report.tensor_types.values()) == len(checkpoint.tensors)
    assert card.kl_divergence.value < MOST_DIVERGENCE.get(name, 0.05)
    assert card.scored_tokens == 2 * 31


@pytest.mark.parametrize("name", [name for name, bits in BITS.items() if bits < 4])
def test_types_of_few_bits_pass_the_gate(
    name: str, repeating: Checkpoint, settings: Settings, shared_stages: Path, tmp_path: Path
) -> None:
    report, output = quantize(repeating, RECIPES[name], tmp_path / "artifact", RecordingRun(repeating, shared_stages))
    card = prove(repeating, tmp_path / "artifact", output, settings)
    assert report.parameter_count == repeating.parameter_count
    assert card.kl_divergence.value < MOST_DIVERGENCE.get(name, 0.05)


def test_fewer_bits_diverge_more(checkpoint: Checkpoint, shared_settings: Settings, tmp_path: Path) -> None:
    divergence = []
    for name in ("Q8_0", "Q5_K_M", "Q4_K_M", "Q2_K"):
        _, output = quantize(checkpoint, RECIPES[name], tmp_path / name)
        divergence.append(prove(checkpoint, tmp_path / name, output, shared_settings).kl_divergence.value)
    assert divergence == sorted(divergence)


@pytest.mark.parametrize("name", ["bf16", "nf4-dq", "int8", "fp8-block", "fp8-e5m2", "nvfp4", "int4-asymmetric"])
def test_shards_keep_their_limit_and_have_an_index(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    limit = 400_000
    quantize(checkpoint, RECIPES[name], tmp_path / "many", RecordingRun(checkpoint, tmp_path / "stages", limit))
    quantize(checkpoint, RECIPES[name], tmp_path / "one")
    shards = list((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size < limit * 1.2 for shard in shards)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / kind, dtype="auto") for kind in ("many", "one")]
    with torch.inference_mode():
        logits = [model(torch.arange(16)[None]).logits for model in models]
    assert torch.equal(*logits)
