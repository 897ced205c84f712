"""A comparison as clients see it, read from its jobs and artifacts as they are now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.orm import Session

from app.domain.artifacts import Measurement
from app.domain.compared import Compared, fronts
from app.domain.comparison import ComparisonRequest
from app.domain.evaluation import COMPARED_REQUESTS, EvaluationResult
from app.domain.jobs import FINAL_STATES, JobState, public_status
from app.domain.quantization.catalog import parse_method
from app.domain.verdict import verdict
from app.persistence.artifacts import ArtifactRepository
from app.persistence.comparisons import ComparisonRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow, ComparedRow, ComparisonRow, JobRow

ORIGINAL = "original"


@dataclass(frozen=True)
class Line:
    """A row with what belongs to it."""

    row: ComparedRow
    quantization: JobRow | None
    evaluation: JobRow | None
    artifact: ArtifactRow | None

    @property
    def is_original(self) -> bool:
        return self.row.method is None

    @property
    def result(self) -> EvaluationResult:
        found = self.evaluation.result if self.evaluation else None
        return EvaluationResult.model_validate(found) if found else EvaluationResult()


def view_comparison(session: Session, comparison: ComparisonRow) -> dict[str, Any]:
    rows = ComparisonRepository(session).rows(comparison.id)
    lines = _lines(session, comparison, rows)
    figures = [compared(line) for line in lines]
    flags = fronts(figures)
    views = [
        _view(line, row, {name: front[number] for name, front in flags.items()})
        for number, (line, row) in enumerate(zip(lines, figures, strict=True))
    ]
    request = ComparisonRequest.model_validate(comparison.request)
    return {
        "object": "comparison",
        "id": comparison.id,
        "status": comparison.outcome or "running",
        "created_at": int(comparison.created_at),
        "finished_at": int(comparison.finished_at) if comparison.finished_at else None,
        "model": comparison.model,
        "set": request.method_set,
        **request.measuring,
        "device": comparison.queue,
        "progress": {
            "fraction": sum(each["fraction"] for each in views) / len(views),
            "settled": sum(row.settled for row in rows),
            "rows": len(rows),
        },
        "hardware": next((line.result.hardware for line in lines if line.result.hardware), None),
        "rows": views,
        "verdict": verdict(figures),
    }


def _lines(session: Session, comparison: ComparisonRow, rows: list[ComparedRow]) -> list[Line]:
    """The original may have been asked for by a path: then what was made of it knows its name."""
    original, *made = [_line(session, comparison, row) for row in rows]
    source = next((line.artifact.source for line in made if line.artifact), None)
    if original.artifact is None and source is not None:
        original = replace(original, artifact=ArtifactRepository(session).find(source))
    return [original, *made]


def _line(session: Session, comparison: ComparisonRow, row: ComparedRow) -> Line:
    jobs, artifacts = JobRepository(session), ArtifactRepository(session)
    quantization = jobs.find(row.quantization_job_id) if row.quantization_job_id else None
    evaluation = jobs.find(row.evaluation_job_id) if row.evaluation_job_id else None
    name = comparison.model if row.method is None else quantization.quantized_model if quantization else None
    return Line(row, quantization, evaluation, artifacts.find(name) if name else None)


def compared(line: Line) -> Compared:
    """The figures that rows are compared by."""
    quality, serving = line.result.quality, line.result.serving
    divergence = quality.kl_divergence.mean if quality and quality.kl_divergence else None
    if line.is_original and quality is not None:
        divergence = Measurement(value=0.0, standard_error=0.0)
    artifact = line.artifact
    return Compared(
        label=label_of(line),
        is_original=line.is_original,
        bits_per_weight=artifact.bits_per_weight if artifact else None,
        size_bytes=artifact.size_bytes if artifact else None,
        memory_bytes=(serving.gpu_bytes or serving.resident_bytes) if serving else None,
        kl_divergence=divergence,
        decode_tokens_per_second=_rates(line).get(str(COMPARED_REQUESTS)),
    )


def label_of(line: Line) -> str:
    if line.row.method is None:
        return ORIGINAL
    spec, params = parse_method(line.row.method)
    return spec.label(params)


def _rates(line: Line) -> dict[str, float | None]:
    serving = line.result.serving
    return {str(each.requests): each.decode_tokens_per_second for each in serving.speed} if serving else {}


def _first_tokens(line: Line) -> dict[str, float]:
    serving = line.result.serving
    return {str(each.requests): each.time_to_first_token_seconds for each in serving.speed} if serving else {}


def _view(line: Line, row: Compared, flags: dict[str, bool | None]) -> dict[str, Any]:
    quality, serving = line.result.quality, line.result.serving
    divergence = quality.kl_divergence if quality else None
    return {
        "label": row.label,
        "original": line.is_original,
        "method": line.row.method,
        "status": _status(line),
        "stage": _stage(line),
        "fraction": _fraction(line),
        "quantization_job": line.row.quantization_job_id,
        "evaluation_job": line.row.evaluation_job_id,
        "model": line.artifact.name if line.artifact else None,
        "reused": line.quantization.reused if line.quantization else False,
        "bits_per_weight": row.bits_per_weight,
        "size_bytes": row.size_bytes,
        "engine": serving.engine if serving else None,
        "resident_bytes": serving.resident_bytes if serving else None,
        "gpu_bytes": serving.gpu_bytes if serving else None,
        "load_seconds": serving.load_seconds if serving else None,
        "perplexity": _measurement(quality.perplexity if quality else None),
        "kl_divergence": _measurement(row.kl_divergence),
        "kl_divergence_p99": divergence.p99 if divergence else None,
        "top1_agreement": _measurement(quality.top1_agreement if quality else None),
        "decode_tokens_per_second": _rates(line),
        "time_to_first_token_seconds": _first_tokens(line),
        "on_pareto_front": flags,
        "error": line.row.error,
    }


def _measurement(value: Measurement | None) -> dict[str, float] | None:
    return value.model_dump() if value is not None else None


def _status(line: Line) -> str:
    if line.row.settled:
        return "failed" if line.row.error else "succeeded"
    if line.evaluation is not None:
        return public_status(JobState(line.evaluation.state))
    if line.quantization is None or line.quantization.state == JobState.SUCCEEDED:
        return "queued"  # for its next job
    return public_status(JobState(line.quantization.state))


def _current(line: Line) -> JobRow | None:
    return line.evaluation or line.quantization


def _stage(line: Line) -> str | None:
    job = _current(line)
    return job.stage if job is not None and JobState(job.state) not in FINAL_STATES else None


def _fraction(line: Line) -> float:
    """Quantizing and measuring fill half of a row each; the original is measured only."""
    if line.row.settled:
        return 1.0
    measured = line.evaluation.fraction if line.evaluation else 0.0
    if line.is_original:
        return measured
    return ((line.quantization.fraction if line.quantization else 0.0) + measured) / 2
