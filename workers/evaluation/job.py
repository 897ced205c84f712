"""The two steps of an evaluation: scoring, and timing in a process that holds no model of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EvaluationFailed
from app.domain.evaluation import EvaluationRequest, Metric
from app.persistence.tables import ArtifactRow
from app.settings import Settings
from app.storage import artifacts
from workers.child import Channel, Message
from workers.job_run import Reporter
from workers.lookup import find_artifact

if TYPE_CHECKING:
    from workers.evaluation.quality import Subject
    from workers.serving.served import ServedModel
    from workers.sources.importing import Report
    from workers.sources.resolve import Source

SCORE = (0.1, 0.7)
TIME = (0.7, 0.8)
TASKS = (0.8, 1.0)


def evaluate(task: Message, channel: Channel, settings: Settings) -> None:
    """Resolves the model and its reference, tells what it found, and scores where quality was asked for."""
    from workers.evaluation.quality import compares, measure_quality, require_measurable
    from workers.job_process import RESOLVE, describe
    from workers.sources.resolve import resolve

    request = EvaluationRequest.model_validate(task["request"])
    require_measurable(request)
    require_harness(request)
    row = find_quantized(request.model, settings)
    report = Reporter(channel, RESOLVE).report
    original = resolve(request.reference or request.model, settings, report)
    is_original = row is not None or request.reference in (None, request.model)
    source = original if is_original else resolve(request.model, settings, report)
    subject = _subject(row, source, settings, report)
    sources = {each.name: describe(each.name, each.fingerprint, each.checkpoint) for each in (original, source)}
    # The artifact was proven to read text as its original does.
    known = _message(subject, row) | {"tokenizer": str(original.path)}
    channel.send({"kind": "resolved", "sources": list(sources.values()), "subject": known})
    quality = None
    if request.measures_quality:
        quality = measure_quality(
            subject,
            original,
            compare=compares(request),
            request=request,
            settings=settings,
            report=Reporter(channel, SCORE).report,
        ).model_dump(mode="json")
    channel.send({"kind": "done", "quality": quality})


def require_harness(request: EvaluationRequest) -> None:
    """Raises EvaluationFailed where tasks were asked for, and what answers them is not installed."""
    if request.tasks and find_spec("lm_eval") is None:
        raise EvaluationFailed(
            "tasks need lm-evaluation-harness, which this worker does not have; install it with: "
            "pip install 'bitmill[tasks]'",
            param="tasks",
        )


def find_quantized(name: str, settings: Settings) -> ArtifactRow | None:
    """The model's row, if a job made it."""
    row = find_artifact(name, settings)
    return row if row is not None and row.method is not None else None


def _subject(row: ArtifactRow | None, source: Source, settings: Settings, report: Report) -> Subject:
    """What is scored and served. An adapter is measured as what it makes of its base, merged."""
    from workers.evaluation.quality import Subject
    from workers.sources.resolve import resolve

    if row is None:
        return Subject(source.name, source.path, ArtifactFormat.SAFETENSORS)
    if row.format == ArtifactFormat.ADAPTER:
        return Subject(row.name, resolve(row.name, settings, report).path, ArtifactFormat.SAFETENSORS)
    return Subject(row.name, artifacts.locate(row, settings), ArtifactFormat(row.format))


def _message(subject: Subject, row: ArtifactRow | None) -> Message:
    """`method` None stands for weights that nobody quantized, as those of a merged adapter."""
    is_quantized = row is not None and row.format != ArtifactFormat.ADAPTER
    method = row.method["type"] if row is not None and row.method and is_quantized else None
    return {"name": subject.name, "folder": str(subject.folder), "format": subject.format.value, "method": method}


def _served(subject: Message, engine: str | None) -> ServedModel:
    from app.domain.serving import DeploymentOptions
    from workers.serving.served import ServedModel

    options = DeploymentOptions(engine=engine)
    folder, format_ = Path(subject["folder"]), ArtifactFormat(subject["format"])
    return ServedModel(subject["name"], folder, format_, subject["method"], options)


def answer_tasks(task: Message, channel: Channel, settings: Settings) -> None:
    """Serves the model, and has lm-evaluation-harness ask it."""
    from workers.evaluation.tasks import run_tasks

    request = EvaluationRequest.model_validate(task["request"])
    subject = channel.receive()["subject"]
    report = Reporter(channel, TASKS).report
    found = run_tasks(_served(subject, request.engine), Path(subject["tokenizer"]), request, settings, report)
    channel.send({"kind": "done", "tasks": {name: each.model_dump(mode="json") for name, each in found.items()}})


def time_serving(task: Message, channel: Channel, settings: Settings) -> None:
    """Serves the model on its engine and times it."""
    from workers.evaluation.speed import measure_serving

    request = EvaluationRequest.model_validate(task["request"])
    model = _served(channel.receive()["subject"], request.engine)
    text = Path(__file__).with_name("data").joinpath("sample.txt").read_text(encoding="utf-8")
    wanted: set[Metric] = set(request.metrics)
    figures = measure_serving(model, text, wanted, settings, Reporter(channel, TIME).report)
    channel.send({"kind": "done", "serving": figures.model_dump(mode="json")})
