"""What an evaluation is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from app.domain.artifacts import Measurement
from app.domain.files import FilePurpose, require_dataset
from app.domain.hardware import Device

NAMED_DATASETS: Final[dict[str, str]] = {
    "builtin": "a text written for Bitmill, about 2,200 tokens; needs no network",
    "python-docs": "the reference documentation inside every Python installation; needs no network",
    "wikitext2": "the test split of WikiText-2, from the hub",
    "c4": "English web pages of the validation split, from the hub",
    "ultrachat": "conversations of UltraChat 200k's test split, from the hub, through the model's chat template",
}


class Metric(StrEnum):
    PERPLEXITY = "perplexity"
    KL_DIVERGENCE = "kl_divergence"  # mean, median, 99th percentile and maximum
    TOP1_AGREEMENT = "top1_agreement"
    MEMORY = "memory"  # resident and GPU memory of the engine
    SPEED = "speed"  # load, time to first token, prefill and decode at 1 and at 8 requests
    ENERGY = "energy"  # where the device reports it


QUALITY_METRICS: Final = frozenset({Metric.PERPLEXITY, Metric.KL_DIVERGENCE, Metric.TOP1_AGREEMENT})
REFERENCE_METRICS: Final = frozenset({Metric.KL_DIVERGENCE, Metric.TOP1_AGREEMENT})
ENGINE_METRICS: Final = frozenset(Metric) - QUALITY_METRICS

# The column of a job's model holds no longer names.
Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]


TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class MeasuringOptions(BaseModel, extra="forbid", frozen=True):
    """What is measured, and on which text."""

    dataset: str = Field(
        default="builtin",
        description=f"{', '.join(NAMED_DATASETS)}, or the id of an uploaded file of text or JSONL.",
    )
    metrics: tuple[Metric, ...] = Field(
        default=tuple(Metric),
        min_length=1,
        description="What to measure. Comparing metrics are left out for an original without a reference.",
    )
    samples: int = Field(default=32, ge=1, le=4096, description="Windows that are scored at most.")
    context_length: int = Field(default=512, ge=8, le=32768, description="Tokens per window.")

    @field_validator("dataset")
    @classmethod
    def _known(cls, value: str) -> str:
        return require_dataset(value, NAMED_DATASETS, FilePurpose.EVALUATION)

    @property
    def measures_quality(self) -> bool:
        return bool(QUALITY_METRICS & set(self.metrics))

    @property
    def measures_engine(self) -> bool:
        return bool(ENGINE_METRICS & set(self.metrics))


class EvaluationRequest(MeasuringOptions, extra="forbid", frozen=True):
    """The body of POST /v1/evaluations."""

    model: Name = Field(description="A model of GET /v1/models, or a source as quantization jobs take it.")
    reference: Name | None = Field(
        default=None,
        description="The original that the model is compared with. A quantized model has its own source.",
    )
    engine: str | None = Field(default=None, max_length=64, description="The engine to time, else the one that serves.")
    metrics: tuple[Metric, ...] = Field(
        default=tuple(Metric),
        description="What to measure. Comparing metrics are left out for an original without a reference. Empty for "
        "tasks alone.",
    )
    tasks: tuple[TaskName, ...] = Field(
        default=(), max_length=64, description="Tasks of lm-evaluation-harness, such as hellaswag."
    )
    task_limit: int | None = Field(default=None, ge=1, description="Documents of each task at most; all where null.")

    @model_validator(mode="after")
    def _measures_something(self) -> EvaluationRequest:
        if not self.metrics and not self.tasks:
            raise ValueError("nothing is to be measured; name `metrics` or `tasks`")
        return self


class Divergence(BaseModel, frozen=True):
    """KL(reference ‖ model) in nats per token over the scored positions."""

    mean: Measurement
    median: float
    p99: float
    maximum: float


class QualityFigures(BaseModel, frozen=True):
    """`scored_tokens` positions in windows of `context_length` tokens, the second half of each."""

    dataset: str
    dataset_sha256: str
    context_length: int
    scored_tokens: int
    reference: str | None = None
    perplexity: Measurement | None = None
    reference_perplexity: Measurement | None = None
    kl_divergence: Divergence | None = None
    top1_agreement: Measurement | None = None


class SpeedFigures(BaseModel, frozen=True):
    """Of so many requests at a time. A rate is None where too few tokens came to tell one."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    time_to_first_token_seconds: float
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    joules_per_output_token: float | None = None


class EngineFigures(BaseModel, frozen=True):
    """What the engine that serves the model took on the worker's machine. `speed` is at 1 and at 8 requests."""

    engine: str
    engine_version: str | None
    device: str
    context_length: int
    load_seconds: float
    resident_bytes: int | None
    gpu_bytes: int | None
    predicted_bytes: int
    speed: tuple[SpeedFigures, ...] = ()


class TaskMetric(BaseModel, frozen=True):
    value: float
    standard_error: float | None = None


class TaskFigures(BaseModel, frozen=True):
    """One task's metrics, as the harness names them. Without a standard error where it gives none."""

    version: str
    documents: int
    metrics: dict[str, TaskMetric]


class EvaluationResult(BaseModel, frozen=True):
    """A part that was not asked for is None. `hardware` is the worker's."""

    quality: QualityFigures | None = None
    serving: EngineFigures | None = None
    tasks: dict[str, TaskFigures] | None = None
    hardware: dict[str, Any] | None = None


# The load at which engines are compared with each other: several requests at a time, as a server has them.
COMPARED_REQUESTS: Final = 8


def measured_speeds(results: Iterable[Mapping[str, Any]], device: Device) -> dict[str, float]:
    """Decoded tokens per second at COMPARED_REQUESTS for each engine measured on such a device.

    `results` are those of one model's evaluations, the newest first; of each engine the newest counts.
    """
    found: dict[str, float] = {}
    for result in results:
        serving = result.get("serving") or {}
        if serving.get("device") != device:
            continue
        rates = [speed["decode_tokens_per_second"] for speed in serving.get("speed") or ()
                 if speed["requests"] == COMPARED_REQUESTS]  # fmt: skip
        if rates and rates[0] is not None:
            found.setdefault(serving["engine"], rates[0])
    return found
