"""Which modules a method replaces, and when that is too little."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from app.domain.errors import InvalidParameter, UnsupportedArchitecture
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from workers.calibration.streamed_model import open_streamed
from workers.quantization.linears import find_linears


def test_every_linear_but_the_head_is_chosen(tmp_path: Path) -> None:
    linears = find_linears(inspect_checkpoint(tiny_llama(tmp_path / "tiny")))
    assert len(linears.quantized) == 2 * 7
    assert linears.skipped == ["lm_head"]
    assert linears.module_of("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj"
    assert linears.module_of("model.norm.weight") is None


@pytest.mark.parametrize(("skip", "count"), [("down_proj", 2), ("model.layers.1", 7), ("layers.0.self_attn", 4)])
def test_modules_are_skipped_by_any_part_of_their_name(skip: str, count: int, tmp_path: Path) -> None:
    linears = find_linears(inspect_checkpoint(tiny_llama(tmp_path / "tiny")), (skip,))
    assert len(linears.skipped) == count + 1


def test_a_name_that_no_module_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"'up'.*self_attn\.q_proj"):
        find_linears(inspect_checkpoint(tiny_llama(tmp_path / "tiny")), ("up",))


def a_gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32))


def a_mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(
        MixtralConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            vocab_size=64, num_local_experts=4,
        )
    )  # fmt: skip


@pytest.mark.parametrize("make", [a_gpt2, a_mixtral])
def test_a_model_that_would_stay_as_it_is_is_refused(make: object, tmp_path: Path) -> None:
    assert callable(make)
    make().save_pretrained(tmp_path / "model")
    source = inspect_checkpoint(tmp_path / "model")
    with pytest.raises(UnsupportedArchitecture, match=r"only \d+% of the layers' weights"):
        find_linears(source)


def test_weights_that_are_stored_under_other_names_cannot_be_streamed(tmp_path: Path) -> None:
    a_mixtral().save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedArchitecture, match="is not stored under that name"):
        open_streamed(inspect_checkpoint(tmp_path / "model"))
