"""Originals that are broken themselves: near them every artifact is near."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.artifacts import ArtifactFormat, Gate, Measurement, QualityCard
from app.domain.errors import BrokenSource
from app.domain.evaluation import EvaluationRequest
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama, tiny_tokenizer
from workers.evaluation.gate import require_better_than_guessing
from workers.evaluation.proof import prove_artifact
from workers.evaluation.quality import Subject, measure_quality
from workers.sources.resolve import Source, resolve


def prove(folder: Path, settings: Settings, gate: Gate = Gate.ON) -> QualityCard:
    """Of the original as its own artifact."""
    return prove_artifact(
        inspect_checkpoint(folder), "0" * 64, folder, ArtifactFormat.SAFETENSORS, settings,
        lambda fraction, stage: None, gate=gate,
    )  # fmt: skip


def change(folder: Path, name: str, value: float) -> Path:
    tensors = load_file(folder / "model.safetensors")
    tensors[name][:] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def compare(folder: Path, settings: Settings) -> None:
    changed = settings.model_copy(update={"source_roots": (folder.parent,)})
    source: Source = resolve(folder.name, changed, lambda fraction, stage: None)
    request = EvaluationRequest(model="tiny", reference="tiny", samples=2, context_length=64)
    measure_quality(
        Subject("tiny", folder, ArtifactFormat.SAFETENSORS), source, compare=True, request=request, settings=settings,
        report=lambda fraction, stage: None,
    )  # fmt: skip


@pytest.mark.parametrize(("perplexity", "broken"), [(511.9, False), (512.0, True), (700.0, True)])
def test_whoever_guesses_has_the_vocabularys_size(perplexity: float, broken: bool) -> None:
    measured = Measurement(value=perplexity, standard_error=9.0)
    if not broken:
        require_better_than_guessing(measured, 512, "builtin")
        return
    with pytest.raises(BrokenSource, match="among its 512 tokens"):
        require_better_than_guessing(measured, 512, "builtin")


def test_an_original_that_knows_nothing_proves_nothing(settings: Settings, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "random", initializer_range=0.15, fitted=False)
    with pytest.raises(BrokenSource, match="no better than that of guessing"):
        prove(folder, settings)
    with pytest.raises(BrokenSource, match="no better than that of guessing"):
        compare(folder, settings)
    assert prove(folder, settings, Gate.OFF).reference_perplexity.value > 512


def test_an_original_whose_head_is_empty_guesses(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BrokenSource, match="perplexity on the text 'builtin' is 512"):
        prove(change(tiny_llama(tmp_path / "empty"), "lm_head.weight", 0.0), settings)


@pytest.mark.parametrize("gate", Gate)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_the_originals_fault(
    settings: Settings, tmp_path: Path, value: float, gate: Gate
) -> None:
    folder = change(tiny_llama(tmp_path / "damaged"), "model.layers.1.mlp.down_proj.weight", value)
    with pytest.raises(BrokenSource, match="not finite"):
        prove(folder, settings, gate)
    with pytest.raises(BrokenSource, match="not finite"):
        compare(folder, settings)
    assert not list((settings.cache_folder / "stages").glob("reference-*[!lk]"))


def test_a_model_without_a_head_is_compared_and_not_judged(settings: Settings, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    folder = tmp_path / "bert"
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        pad_token_id=tokenizer.pad_token_id, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    card = prove(folder, settings)
    assert card.kl_divergence is not None
    assert card.kl_divergence.value == pytest.approx(0, abs=1e-6)
    assert card.top1_agreement.value == 1.0


def test_a_head_that_was_left_out_is_that_of_the_embeddings(settings: Settings, tmp_path: Path) -> None:
    """For such a model this is what a tied head gives, which transformers takes by itself."""
    tied = tiny_llama(tmp_path / "tied", tie_word_embeddings=True)
    figures = prove(tied, settings)
    (tied / "modules.json").write_text('[{"path": "", "type": "m.Transformer"}]')
    config = tied / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    found = prove(tied, settings.model_copy(update={"data_dir": tmp_path / "other"}))
    assert found.reference_perplexity.value == pytest.approx(figures.reference_perplexity.value, rel=1e-3)
    assert found.generated_text == figures.generated_text
