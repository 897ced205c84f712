"""An evaluation's figures of quality: one scorer for every format, fed with the original's token ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import InvalidParameter, QualityGateFailed
from app.domain.evaluation import REFERENCE_METRICS, Divergence, EvaluationRequest, Metric, QualityFigures
from app.domain.files import FILE_ID, FilePurpose
from app.settings import Settings
from workers.calibration.texts import Document, read_documents, read_file
from workers.evaluation import sample as samples
from workers.evaluation.gate import require_better_than_guessing
from workers.evaluation.metrics import mean, perplexity
from workers.evaluation.proof import open_scorer, require_same_tokens
from workers.evaluation.reference import Reference, load_reference
from workers.evaluation.sample import Sample, cut_sample
from workers.evaluation.scorers.backbone import lacks_head
from workers.evaluation.scoring import Scores, score
from workers.sources.resolve import Source
from workers.stages import shared_stages
from workers.uploads import find_upload

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated: its files, and how they are read."""

    name: str
    folder: Path
    format: ArtifactFormat


def read_dataset(dataset: str, settings: Settings) -> list[Document]:
    """What models are measured on. Raises HubUnreachable, InvalidParameter or FileNotFound."""
    if dataset == samples.NAME:
        return [samples.TEXT.read_text(encoding="utf-8")]
    if FILE_ID.fullmatch(dataset):
        row, path = find_upload(dataset, FilePurpose.EVALUATION, settings, param="dataset")
        return read_file(path, row.filename, param="dataset")
    return read_documents(dataset, settings, held_out=True, param="dataset")


def measure_quality(
    subject: Subject,
    original: Source,
    *,
    compare: bool,
    request: EvaluationRequest,
    settings: Settings,
    report: Report,
) -> QualityFigures:
    """`original` gives the token ids; with `compare` its log-probabilities too, which are kept for other jobs.

    Raises InvalidParameter for a data set that does not fill a window, QualityGateFailed for a model that cannot be
    loaded, reads text differently or gives logits that are not finite, and BrokenSource for a reference whose logits
    are not finite, or which predicts the built-in text no better than guessing.
    """
    documents = read_dataset(request.dataset, settings)
    sample = cut_sample(
        original.checkpoint, request.dataset, documents, length=request.context_length, limit=request.samples
    )
    reference = _reference(original, sample, settings, report) if compare else None
    if reference is not None and sample.name == samples.NAME and not lacks_head(original.checkpoint):
        require_better_than_guessing(perplexity(reference.nll), reference.vocabulary, sample.name)
    report(0.5, "loading the model")
    with open_scorer(subject.folder, subject.format, sample.context_length) as scorer:
        require_same_tokens(scorer, sample)
        scores = score(scorer, sample, reference, lambda fraction, stage: report(0.5 + fraction / 2, stage))
    return figures(sample, scores, reference, original.name, request)


def _reference(original: Source, sample: Sample, settings: Settings, report: Report) -> Reference:
    stages = shared_stages(settings, report)
    return load_reference(
        original.checkpoint, original.fingerprint, sample, stages, lambda fraction, stage: report(fraction / 2, stage)
    )


def compares(request: EvaluationRequest) -> bool:
    return request.reference is not None and bool(REFERENCE_METRICS & set(request.metrics))


def figures(
    sample: Sample, scores: Scores, reference: Reference | None, original: str, request: EvaluationRequest
) -> QualityFigures:
    """Of what was asked for. Raises QualityGateFailed for scores that are not finite."""
    if not (np.isfinite(scores.nll).all() and np.isfinite(scores.divergence).all()):
        raise QualityGateFailed("the model's logits are not finite on this text, so that nothing can be measured")
    wanted = set(request.metrics)
    found = QualityFigures(
        dataset=sample.name,
        dataset_sha256=sample.sha256,
        context_length=sample.context_length,
        scored_tokens=len(scores.nll),
    )
    values: dict[str, object] = {}
    if Metric.PERPLEXITY in wanted:
        values["perplexity"] = perplexity(scores.nll)
    if reference is not None:
        values |= {"reference": original} | _compared(scores, reference, wanted)
    return found.model_copy(update=values)


def _compared(scores: Scores, reference: Reference, wanted: set[Metric]) -> dict[str, object]:
    values: dict[str, object] = {}
    if Metric.PERPLEXITY in wanted:
        values["reference_perplexity"] = perplexity(reference.nll)
    if Metric.KL_DIVERGENCE in wanted:
        divergence = scores.divergence
        values["kl_divergence"] = Divergence(
            mean=mean(divergence),
            median=float(np.median(divergence)),
            p99=float(np.quantile(divergence, 0.99)),
            maximum=float(divergence.max()),
        )
    if Metric.TOP1_AGREEMENT in wanted:
        values["top1_agreement"] = mean(scores.agreement)
    return values


def require_measurable(request: EvaluationRequest) -> None:
    """Raises InvalidParameter where nothing of what was asked for can be told without a reference."""
    if request.metrics and request.reference is None and set(request.metrics) <= REFERENCE_METRICS:
        asked = ", ".join(metric.value for metric in request.metrics)
        raise InvalidParameter(f"{asked} of an original need a `reference` to compare with", param="reference")
