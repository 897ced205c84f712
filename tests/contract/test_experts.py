"""Mixtures of experts, whose files hold each expert's matrices and whose models hold them in one tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.domain.errors import InvalidParameter, UnsupportedArchitecture
from app.settings import Settings
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.contract.test_methods import prove, quantize
from tests.fakes.checkpoints import tiny_tokenizer
from tests.fakes.fitting import fit

COMMON: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 256, "initializer_range": 0.05,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 64, "head_dim": 16},
    "Olmoe": {"num_experts": 4},
}
EXPERTS = 2 * 4 * 3  # layers, experts, matrices
ATTENTION = 2 * 4


def a_mixture(family: str, folder: Path) -> Checkpoint:
    import transformers

    config = getattr(transformers, f"{family}Config")(**COMMON, **FAMILIES[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    tokenizer = tiny_tokenizer()
    fit(model, tokenizer)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return inspect_checkpoint(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "stored"),
    [({"type": "fp8"}, "F8_E4M3"), ({"type": "int4", "group_size": 32}, "INT4")],
    ids=["fp8", "int4"],
)
def test_experts_are_quantized_one_by_one_and_load_together(
    family: str, method: dict[str, Any], stored: str, settings: Settings, tmp_path: Path
) -> None:
    source = a_mixture(family, tmp_path / "model")
    report, output = quantize(source, method, tmp_path / "artifact")
    assert report.tensor_types[stored] == EXPERTS + ATTENTION
    assert report.parameter_count == source.parameter_count
    card = prove(source, tmp_path / "artifact", output, settings)
    assert 0 < card.kl_divergence.value < 0.05
    loaded, original = (
        AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in (tmp_path / "artifact", source.path)
    )
    for name in ("gate_up_proj", "down_proj"):
        ours, theirs = (getattr(model.model.layers[1].mlp.experts, name).float() for model in (loaded, original))
        error = (ours - theirs).abs()
        assert 0 < error.max() < 0.1 * theirs.abs().max()


@pytest.mark.parametrize(
    "method",
    [
        {"type": "int4", "symmetric": False, "group_size": 32},
        {"type": "fp8", "granularity": "block"},
        {"type": "int8"},
        {"type": "bitsandbytes"},
        {"type": "fp4"},
    ],
)
def test_what_no_loader_would_put_together_is_refused(method: dict[str, Any], tmp_path: Path) -> None:
    source = a_mixture("Mixtral", tmp_path / "model")
    with pytest.raises(UnsupportedArchitecture, match=r"choose fp8.*int4"):
        quantize(source, method, tmp_path / "artifact")


def test_layers_outside_the_experts_can_be_left_alone(settings: Settings, tmp_path: Path) -> None:
    source = a_mixture("Qwen3Moe", tmp_path / "model")
    report, output = quantize(
        source, {"type": "int4", "group_size": 32, "skip_modules": ["self_attn"]}, tmp_path / "artifact"
    )
    assert report.tensor_types["INT4"] == EXPERTS
    assert prove(source, tmp_path / "artifact", output, settings).kl_divergence.value < 0.05


@pytest.mark.parametrize("skip", ["layers.0.mlp", "down_proj", "experts.3"])
def test_some_of_the_experts_cannot(skip: str, tmp_path: Path) -> None:
    source = a_mixture("Qwen3Moe", tmp_path / "model")
    with pytest.raises(InvalidParameter, match=r"experts.*want all of them quantized"):
        quantize(source, {"type": "fp8", "skip_modules": [skip]}, tmp_path / "artifact")
