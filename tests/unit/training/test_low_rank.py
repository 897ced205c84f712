"""LoRA and QLoRA: what is learned, what is written, and what that is when it is loaded again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.domain.errors import IncompatibleModel, InvalidParameter
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.training import FakeBase, RecordingHooks, request_for
from workers.training.low_rank import attach, load_low_rank_base
from workers.training.merging import merge_adapter, read_updates
from workers.training.training import Writing, train

TOKENS = torch.arange(40)[None] * 7 % 500


def trained(base: FakeBase, facts: Path, folder: Path, adapter: str, **options: object) -> tuple[Path, RecordingHooks]:
    target, hooks = folder / "target", RecordingHooks()
    target.mkdir()
    request = request_for(adapter, **options)
    report = train(base, target, request, facts, None, folder / "checkpoints", hooks, Settings(data_dir=folder))
    assert report.sample.after == pytest.approx(hooks.losses[-1], rel=0.2)
    return target, hooks


@pytest.fixture(scope="module")
def lora(base: FakeBase, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RecordingHooks]:
    return trained(base, facts, tmp_path_factory.mktemp("lora"), "lora")


@pytest.fixture(scope="module")
def qlora(base: FakeBase, facts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RecordingHooks]:
    return trained(base, facts, tmp_path_factory.mktemp("qlora"), "qlora")


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_the_loss_falls_and_every_step_is_told(adapter: str, request: pytest.FixtureRequest) -> None:
    _, hooks = request.getfixturevalue(adapter)
    assert sorted(hooks.steps) == list(range(1, 31))
    assert hooks.losses[0] == pytest.approx(math.log(512), rel=0.05)
    assert hooks.losses[-1] < 0.7 * hooks.losses[0]
    assert hooks.steps[30]["train_mean_token_accuracy"] > 2 * hooks.steps[1]["train_mean_token_accuracy"] + 0.3
    assert hooks.steps[2]["learning_rate"] == pytest.approx(1e-2, rel=0.05)
    assert all(values["tokens_per_second"] > 0 for values in hooks.steps.values())
    fractions = [fraction for fraction, _ in hooks.reports]
    assert fractions == sorted(fractions)


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_an_adapter_names_its_base_and_brings_the_tokenizer(adapter: str, request: pytest.FixtureRequest) -> None:
    target, _ = request.getfixturevalue(adapter)
    config = json.loads((target / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "local/tiny"
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (16, 32, True)
    assert AutoTokenizer.from_pretrained(target).chat_template
    tensors = load_file(target / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert (target / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644
    assert not list(target.glob("*.md"))


def test_an_adapter_that_is_loaded_again_gives_the_same_logits(
    base: FakeBase, lora: tuple[Path, RecordingHooks], tmp_path: Path
) -> None:
    target, _ = lora
    options = request_for("lora").bitmill
    fresh = attach(load_low_rank_base(base.checkpoint, options), options)
    trained_weights = load_file(target / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if "lora_" in name:
                parameter.copy_(trained_weights[name.replace(".default", "")])
    reloaded = PeftModel.from_pretrained(load_low_rank_base(base.checkpoint, options), target)
    with torch.inference_mode():
        assert torch.equal(fresh.eval()(TOKENS).logits, reloaded.eval()(TOKENS).logits)


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_merged_logits_are_those_of_base_and_adapter(
    adapter: str, base: FakeBase, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Also of an adapter that was trained on 4 bits: it is merged into the base's own weights."""
    target, _ = request.getfixturevalue(adapter)
    (tmp_path / "merged").mkdir()
    merge_adapter(base.checkpoint, target, tmp_path / "merged", Writing(RecordingHooks(), 10**9))
    loaded = AutoModelForCausalLM.from_pretrained(base.checkpoint.path, dtype=torch.float32)
    expected = PeftModel.from_pretrained(loaded, target).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.bfloat16
    with torch.inference_mode():
        wanted = expected(TOKENS).logits
        found = merged.eval().float()(TOKENS).logits
        with expected.disable_adapter():
            before = expected(TOKENS).logits
    # bfloat16 keeps eight bits of each weight.
    assert (found - wanted).norm() < 2**-7 * wanted.norm()
    assert (before - wanted).norm() > 0.5 * wanted.norm()


def test_merging_writes_a_whole_checkpoint(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    (base.checkpoint.path / "README.md").write_text("# tiny")
    target, _ = trained(base, facts, tmp_path, "lora", merge=True, epochs=2)
    found = inspect_checkpoint(target)
    assert {name: info.shape for name, info in found.tensors.items()} == {
        name: info.shape for name, info in base.checkpoint.tensors.items()
    }
    assert (target / "README.md").read_text() == "# tiny"
    assert (target / "generation_config.json").read_bytes() == (
        base.checkpoint.path / "generation_config.json"
    ).read_bytes()
    assert not (target / "adapter_config.json").exists()
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o644}
    (base.checkpoint.path / "README.md").unlink()


def test_the_base_of_qlora_is_in_4_bits(base: FakeBase) -> None:
    model = load_low_rank_base(base.checkpoint, request_for("qlora").bitmill)
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.quant_state.quant_type == "nf4"
    assert weight.quant_state.nested
    assert model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["wheel"], r"'wheel', but no layer of this model is named so; it has down_proj, .*v_proj"),
        (["norm"], r"'norm', but model.norm is no Linear layer"),
    ],
)
def test_layers_that_take_no_adapter_are_named(targets: list[str], message: str, base: FakeBase) -> None:
    options = request_for("lora", target_modules=targets).bitmill
    with pytest.raises(InvalidParameter, match=message) as caught:
        attach(load_low_rank_base(base.checkpoint, options), options)
    assert caught.value.param == "bitmill.target_modules"


def test_an_output_head_that_is_the_embeddings_takes_no_adapter(tmp_path: Path) -> None:
    tied = inspect_checkpoint(tiny_llama(tmp_path / "tied", tie_word_embeddings=True))
    options = request_for("lora", target_modules=["q_proj", "lm_head"]).bitmill
    with pytest.raises(InvalidParameter, match="'lm_head', whose weights this model shares with its embeddings"):
        attach(load_low_rank_base(tied, options), options)


def test_chosen_layers_alone_get_adapters(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    target, _ = trained(base, facts, tmp_path, "lora", target_modules=["q_proj", "down_proj"], rank=4, epochs=1)
    updates = read_updates(target)
    assert len(updates) == 4
    assert all(update.down.shape[0] == 4 for update in updates.values())
    assert {name.split(".")[-2] for name in updates} == {"q_proj", "down_proj"}


def test_what_is_no_plain_lora_is_not_merged(lora: tuple[Path, RecordingHooks], tmp_path: Path) -> None:
    target, _ = lora
    config = json.loads((target / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(IncompatibleModel, match="use_dora is True"):
        read_updates(tmp_path)
