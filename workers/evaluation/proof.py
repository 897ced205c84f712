"""The serve-back gate: an artifact is loaded, generates, and is measured before its job may succeed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from app.domain.artifacts import ArtifactFormat, Gate, Measurement, QualityCard
from app.domain.errors import QualityGateFailed
from app.settings import Settings
from app.storage.artifacts import gguf_file
from app.storage.checkpoints import Checkpoint
from workers.evaluation.gate import require_answer, require_better_than_guessing, require_sane
from workers.evaluation.metrics import mean, perplexity
from workers.evaluation.reference import Reference, load_reference
from workers.evaluation.sample import GENERATED_TOKENS, Sample, load_sample
from workers.evaluation.scorers.backbone import lacks_head
from workers.evaluation.scorers.base import Scorer
from workers.evaluation.scoring import Scores, score
from workers.stages import shared_stages

Report = Callable[[float, str], None]


def prove_artifact(
    original: Checkpoint,
    fingerprint: str,
    artifact: Path,
    format_: ArtifactFormat,
    settings: Settings,
    report: Report,
    gate: Gate = Gate.ON,
    bits: float | None = None,
) -> QualityCard:
    """Measures the artifact in `artifact` against the original. `bits` are the method's nominal bits per weight.

    Raises QualityGateFailed where it cannot be loaded or reads text differently, and, unless the gate is off, where
    its figures or its answer are those of a broken model. Raises BrokenSource where the original's logits are not
    finite, and, unless the gate is off, where it predicts text no better than guessing.
    """
    sample = load_sample(original, settings)
    stages = shared_stages(settings, report)
    reference = load_reference(original, fingerprint, sample, stages, _part(report, 0.0, 0.5))
    if gate is Gate.ON and not lacks_head(original):
        require_better_than_guessing(perplexity(reference.nll), reference.vocabulary, sample.name)
    report(0.5, "loading the artifact")
    with open_scorer(artifact, format_, sample.context_length) as scorer:
        require_same_tokens(scorer, sample)
        _require_same_ends(scorer, sample)
        _require_template(scorer, sample)
        made = scorer.generate(sample.prompt, GENERATED_TOKENS, sample.stop)
        text = str(sample.tokenizer.decode(made, skip_special_tokens=True))
        scores = score(scorer, sample, reference, _part(report, 0.5, 1.0))
        card = _card(sample, reference, scores, text)
    if gate is Gate.ON:
        require_sane(card, bits)
        require_answer(made, reference.generated, text)
    return card.model_copy(update={"gate": gate})


def open_scorer(artifact: Path, format_: ArtifactFormat, context_length: int) -> AbstractContextManager[Scorer]:
    """Only the library that the format needs is imported."""
    if format_ is ArtifactFormat.GGUF:
        from workers.evaluation.scorers.gguf import GgufScorer

        found = gguf_file(artifact)
        if found is None:
            raise QualityGateFailed("the artifact's folder holds no GGUF file; submit the job again")
        return GgufScorer(found, context_length)
    from workers.evaluation.scorers.opening import open_artifact

    return open_artifact(artifact)


def _part(report: Report, start: float, end: float) -> Report:
    return lambda fraction, stage: report(start + (end - start) * fraction, stage)


def require_same_tokens(scorer: Scorer, sample: Sample) -> None:
    tokens = scorer.tokenize(sample.text)
    if tokens is not None and not np.array_equal(tokens, sample.tokens):
        shorter = min(len(tokens), len(sample.tokens))
        differing = np.flatnonzero(tokens[:shorter] != sample.tokens[:shorter])
        place = int(differing[0]) if len(differing) else shorter
        raise QualityGateFailed(
            f"the artifact's tokenizer differs from the original's at token {place} of the sample; "
            f"text would be read differently. Choose a safetensors method for this model"
        )


def _require_same_ends(scorer: Scorer, sample: Sample) -> None:
    for token in sorted(scorer.goes_on_after(sample.stop)):
        text = sample.tokenizer.convert_ids_to_tokens(token)
        raise QualityGateFailed(
            f"the original ends a generation at token {token} ({text!r}), the artifact's engine would go on; answers "
            f"would not stop. Correct eos_token_id in the model's config.json and generation_config.json, or choose a "
            f"safetensors method"
        )


def _require_template(scorer: Scorer, sample: Sample) -> None:
    template = sample.tokenizer.chat_template
    if isinstance(template, str) and scorer.lacks_template(template):
        raise QualityGateFailed(
            "the artifact does not hold the original's chat template; conversations would be formatted otherwise. "
            "Choose a safetensors method for this model"
        )


def _card(sample: Sample, reference: Reference, scores: Scores, text: str) -> QualityCard:
    divergence = scores.divergence
    return QualityCard(
        dataset=sample.name,
        dataset_sha256=sample.sha256,
        context_length=sample.context_length,
        scored_tokens=len(scores.nll),
        perplexity=_finite(perplexity(scores.nll)),
        reference_perplexity=perplexity(reference.nll),
        kl_divergence=_finite(mean(divergence)),
        kl_divergence_p99=float(np.quantile(divergence, 0.99)) if np.isfinite(divergence).all() else None,
        top1_agreement=mean(scores.agreement),
        generated_text=text,
    )


def _finite(measurement: Measurement) -> Measurement | None:
    return measurement if np.isfinite([measurement.value, measurement.standard_error]).all() else None
