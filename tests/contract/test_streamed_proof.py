"""A model that does not fit into memory is measured layer by layer, with the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.domain.artifacts import ArtifactFormat, QualityCard
from app.domain.errors import InsufficientMemory
from app.settings import Settings
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.contract.test_methods import quantize
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.models import tiny_model
from workers.evaluation.proof import prove_artifact
from workers.evaluation.sample import GENERATED_TOKENS, load_sample
from workers.evaluation.scorers import opening
from workers.evaluation.scorers.opening import open_artifact, open_checkpoint
from workers.evaluation.scorers.safetensors import SafetensorsScorer
from workers.evaluation.scorers.streamed import StreamedScorer
from workers.evaluation.windows import scored


def only_little_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "free_memory_bytes", lambda: 10**6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma3ForCausalLM"])
def test_logits_and_answers_are_those_of_the_whole_model(
    architecture: str, dtype: str, settings: Settings, tmp_path: Path
) -> None:
    source = inspect_checkpoint(tiny_model(architecture, tmp_path / "model", dtype=dtype))
    sample = load_sample(source, settings.model_copy(update={"evaluation_windows": 3}))
    positions, _ = scored(sample.windows[0])
    with SafetensorsScorer(source.path) as whole, StreamedScorer(source) as streamed:
        expected = [whole.logits(window, positions) for window in sample.windows]
        found = list(streamed.each_logits(sample.windows, positions))
        answers = [scorer.generate(sample.prompt, GENERATED_TOKENS, sample.stop) for scorer in (whole, streamed)]
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        tolerance = 1e-4 if dtype == "float32" else 0.02 * np.abs(theirs).max()
        assert np.abs(ours - theirs).max() <= tolerance
    assert answers[0] == answers[1]


def prove(original: Checkpoint, artifact: Path, data: Path) -> QualityCard:
    settings = Settings(data_dir=data, evaluation_context_length=64, evaluation_windows=2)
    return prove_artifact(
        original, "f" * 64, artifact, ArtifactFormat.SAFETENSORS, settings, lambda fraction, stage: None
    )


def test_the_card_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = inspect_checkpoint(tiny_llama(tmp_path / "original", dtype="float32"))
    artifact = tiny_llama(tmp_path / "artifact", dtype="bfloat16")
    whole = prove(original, artifact, tmp_path / "whole")
    only_little_is_free(monkeypatch)
    assert isinstance(open_checkpoint(original), StreamedScorer)
    streamed = prove(original, artifact, tmp_path / "streamed")
    assert streamed.reference_perplexity.value == pytest.approx(whole.reference_perplexity.value, rel=1e-4)
    assert streamed.perplexity.value == pytest.approx(whole.perplexity.value, rel=1e-3)
    assert streamed.kl_divergence.value == pytest.approx(whole.kl_divergence.value, rel=0.1)
    assert streamed.generated_text == whole.generated_text


@pytest.mark.parametrize(
    "method",
    [
        {"type": "int4", "group_size": 32},
        {"type": "int4", "group_size": 32, "symmetric": False},
        {"type": "int8"},
        {"type": "fp8"},
        {"type": "fp8", "granularity": "block"},
        {"type": "fp4", "format": "nvfp4"},
        {"type": "fp4", "format": "mxfp4"},
    ],
    ids=["int4", "int4-asymmetric", "int8", "fp8", "fp8-block", "nvfp4", "mxfp4"],
)
def test_what_is_unpacked_on_loading_is_measured_layer_by_layer_too(
    method: dict[str, Any], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect_checkpoint(tiny_llama(tmp_path / "model", hidden_size=128))
    quantize(source, method, tmp_path / "artifact")
    sample = load_sample(source, settings)
    positions, _ = scored(sample.windows[0])
    only_little_is_free(monkeypatch)
    with SafetensorsScorer(source.path) as plain, SafetensorsScorer(tmp_path / "artifact") as whole:
        original, expected = (next(scorer.each_logits(sample.windows, positions)) for scorer in (plain, whole))
    streamed = open_artifact(tmp_path / "artifact")
    assert isinstance(streamed, StreamedScorer)
    with streamed:
        found = next(streamed.each_logits(sample.windows, positions))
    # Far closer to the same artifact's than that is to the original's: with the inputs' rounding, where there is one.
    assert np.abs(found - expected).mean() < 0.2 * np.abs(original - expected).mean()


def test_libraries_that_keep_weights_packed_load_them_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = inspect_checkpoint(tiny_llama(tmp_path / "model"))
    quantize(source, {"type": "bitsandbytes"}, tmp_path / "artifact")
    only_little_is_free(monkeypatch)
    assert not isinstance(open_artifact(tmp_path / "artifact"), StreamedScorer)


def test_what_can_neither_be_held_nor_streamed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    MixtralForCausalLM(
        MixtralConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            vocab_size=64, num_local_experts=4,
        )
    ).save_pretrained(tmp_path / "model")  # fmt: skip
    only_little_is_free(monkeypatch)
    scorer = open_checkpoint(inspect_checkpoint(tmp_path / "model"))
    with pytest.raises(InsufficientMemory, match=r"bytes of weights do not fit.*worker with more memory"):
        scorer.__enter__()
