"""A source that lacks a tensor is refused by its name, before any of its weights is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.errors import CorruptCheckpoint
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import bare_checkpoint, tiny_llama
from tests.fakes.models import SHAPES, tiny_model
from workers.sources.completeness import require_complete
from workers.sources.resolve import resolve

MODULES = [{"path": "", "type": "m.Transformer"}, {"path": "1_Pooling", "type": "m.Pooling"}]
SIZE = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
NORM = "model.layers.1.input_layernorm.weight"


def check(folder: Path, tmp_path: Path, *, head: bool = False) -> None:
    require_complete(inspect_checkpoint(folder), "0" * 64, Settings(data_dir=tmp_path / "data"), head=head)


def change(folder: Path, dropped: tuple[str, ...] = (), **replaced: torch.Tensor) -> Path:
    tensors = load_file(folder / "model.safetensors")
    assert set(dropped) <= set(tensors)
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    save_file(kept | replaced, folder / "model.safetensors", {"format": "pt"})
    return folder


def mixture(folder: Path) -> Path:
    from transformers import MixtralConfig, MixtralForCausalLM

    MixtralForCausalLM(MixtralConfig(**SIZE, num_local_experts=4)).save_pretrained(folder)
    return folder


def bert(folder: Path, kind: str = "BertModel", **options: Any) -> Path:
    import transformers

    config = transformers.BertConfig(**{name: size for name, size in SIZE.items() if "key_value" not in name})
    getattr(transformers, kind)(config, **options).save_pretrained(folder)
    return folder


def for_embeddings(folder: Path) -> Path:
    (folder / "modules.json").write_text(json.dumps(MODULES))
    return folder


@pytest.mark.parametrize("architecture", sorted(SHAPES))
def test_every_family_is_complete_and_lacks_what_is_taken(architecture: str, tmp_path: Path) -> None:
    folder = tiny_model(architecture, tmp_path / "model")
    check(folder, tmp_path / "whole")
    with pytest.raises(CorruptCheckpoint, match=rf"lacks '{NORM}', which a {architecture} has by its config.json"):
        check(change(folder, (NORM,)), tmp_path / "part")


@pytest.mark.parametrize(("tied", "lost"), [(False, "lm_head.weight"), (True, "model.embed_tokens.weight")])
def test_a_head_is_missed_unless_it_is_tied(tmp_path: Path, tied: bool, lost: str) -> None:
    folder = tiny_llama(tmp_path / "model", tie_word_embeddings=tied)
    check(folder, tmp_path / "whole")
    with pytest.raises(CorruptCheckpoint, match=lost):
        check(change(folder, (lost,)), tmp_path / "part")


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    names = tuple(name for name in load_file(folder / "model.safetensors") if ".layers.1." in name)
    with pytest.raises(CorruptCheckpoint, match=f"and {len(names) - 3} more"):
        check(change(folder, names), tmp_path)


def test_a_tensor_of_another_shape_than_the_configs_is_refused(tmp_path: Path) -> None:
    folder = change(tiny_llama(tmp_path / "model"), **{NORM: torch.ones(65)})
    with pytest.raises(CorruptCheckpoint, match=rf"{NORM} has the shape \[65\] where config.json makes it \[64\]"):
        check(folder, tmp_path)


@pytest.mark.parametrize("lost", ["w1", "w2", "w3"])
def test_an_expert_that_is_put_together_with_others_is_missed(tmp_path: Path, lost: str) -> None:
    folder = mixture(tmp_path / "model")
    check(folder, tmp_path / "whole")
    name = f"model.layers.1.block_sparse_moe.experts.2.{lost}.weight"
    with pytest.raises(CorruptCheckpoint, match=r"experts.2.w|mlp.experts.down_proj"):
        check(change(folder, (name,)), tmp_path / "part")


def test_names_without_the_models_prefix_are_known(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    check(folder, tmp_path)


def test_tensors_beyond_the_models_are_left_alone(tmp_path: Path) -> None:
    folder = change(tiny_llama(tmp_path / "model"), **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    check(folder, tmp_path)


@pytest.mark.parametrize("pooler", [True, False])
def test_a_model_for_embeddings_needs_neither_head_nor_pooler(tmp_path: Path, pooler: bool) -> None:
    folder = bert(tmp_path / "model", add_pooling_layer=pooler)
    check(folder, tmp_path / "whole")
    with pytest.raises(CorruptCheckpoint, match=r"encoder.layer.1.output.dense.weight"):
        check(change(folder, ("encoder.layer.1.output.dense.weight",)), tmp_path / "part")


def test_a_model_for_embeddings_that_is_to_be_trained_needs_its_head(tmp_path: Path) -> None:
    folder = change(for_embeddings(tiny_llama(tmp_path / "model")), ("lm_head.weight",))
    check(folder, tmp_path)
    with pytest.raises(CorruptCheckpoint, match=r"lm_head.weight"):
        check(folder, tmp_path, head=True)


def test_what_transformers_does_not_know_is_left_to_who_does(tmp_path: Path) -> None:
    check(bare_checkpoint(tmp_path / "model", architecture="NobodysForCausalLM"), tmp_path)


def test_a_model_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_llama(tmp_path / "model")
    check(folder, tmp_path)
    monkeypatch.setattr("workers.sources.completeness._read_config", lambda folder: pytest.fail("looked again"))
    check(folder, tmp_path)


def test_a_source_is_refused_as_it_is_resolved(settings: Settings, tmp_path: Path) -> None:
    change(tiny_llama(tmp_path / "models" / "tiny"), (NORM,))
    changed = settings.model_copy(update={"source_roots": (tmp_path / "models",)})
    for _ in range(2):  # a refusal is not remembered
        with pytest.raises(CorruptCheckpoint, match=NORM):
            resolve("tiny", changed, lambda fraction, stage: None)
