"""Evaluations of whole models with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import InvalidParameter, QualityGateFailed
from app.domain.evaluation import EvaluationRequest, Metric, QualityFigures
from app.settings import Settings
from tests.fakes.checkpoints import tiny_llama
from workers.evaluation.metrics import mean
from workers.evaluation.quality import Subject, figures, measure_quality, require_measurable
from workers.evaluation.sample import load_sample
from workers.evaluation.scoring import Scores
from workers.sources.resolve import Source, resolve


@pytest.fixture
def source(settings: Settings, tmp_path: Path) -> Source:
    tiny_llama(tmp_path / "models" / "tiny")
    changed = settings.model_copy(update={"source_roots": (tmp_path / "models",)})
    return resolve("tiny", changed, lambda fraction, stage: None)


def measure(source: Source, settings: Settings, folder: Path | None = None, *, compare: bool = True) -> QualityFigures:
    request = EvaluationRequest(model="tiny", reference="tiny", samples=3, context_length=32)
    return measure_quality(
        Subject("tiny", folder or source.path, ArtifactFormat.SAFETENSORS),
        source,
        compare=compare,
        request=request,
        settings=settings,
        report=lambda fraction, stage: None,
    )


def test_a_model_equals_itself(source: Source, settings: Settings) -> None:
    found = measure(source, settings)
    assert found.kl_divergence is not None
    assert found.kl_divergence.maximum == pytest.approx(0, abs=1e-6)
    assert found.top1_agreement == mean(np.ones(45))
    assert found.perplexity == found.reference_perplexity
    assert (found.scored_tokens, found.context_length, found.reference) == (45, 32, "tiny")


def test_a_model_that_prefers_nothing_has_the_vocabularys_size_as_perplexity(
    source: Source, settings: Settings, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    flat = tiny_llama(tmp_path / "flat")
    tensors = load_file(flat / "model.safetensors")
    tensors["lm_head.weight"].zero_()
    save_file(tensors, flat / "model.safetensors", {"format": "pt"})
    found = measure(source, settings, flat)
    assert found.perplexity is not None
    assert found.perplexity.value == pytest.approx(512)
    assert found.perplexity.standard_error == pytest.approx(0, abs=1e-6)


def test_without_a_reference_only_the_models_own_figures_are_told(source: Source, settings: Settings) -> None:
    found = measure(source, settings, compare=False)
    assert found.perplexity is not None
    assert (found.kl_divergence, found.top1_agreement, found.reference) == (None, None, None)
    assert not list((settings.cache_folder / "stages").glob("reference-*"))


def test_scores_that_are_not_finite_fail(source: Source, settings: Settings) -> None:
    scores = Scores(np.array([np.nan]), np.array([]), np.array([]))
    with pytest.raises(QualityGateFailed, match="not finite"):
        figures(load_sample(source.checkpoint, settings), scores, None, "tiny", EvaluationRequest(model="tiny"))


def test_what_needs_a_reference_is_refused_without_one() -> None:
    require_measurable(EvaluationRequest(model="tiny"))
    with pytest.raises(InvalidParameter, match="kl_divergence"):
        require_measurable(EvaluationRequest(model="tiny", metrics=(Metric.KL_DIVERGENCE,)))
