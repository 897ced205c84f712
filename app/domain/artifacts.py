"""Artifacts: immutable folders that hold a model, and their measurements."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from app.domain.quantization.calibration import CalibrationRecord


class ArtifactFormat(StrEnum):
    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    ADAPTER = "adapter"  # low-rank matrices of peft, to be served beside the weights of their base


class ArtifactKind(StrEnum):
    BASE = "base"  # an imported original
    QUANTIZED = "quantized"  # the result of a job
    FINE_TUNED = "fine-tuned"  # the result of a training job


class Gate(StrEnum):
    """Whether a job fails when its artifact was measured to be beyond what its method explains."""

    ON = "on"
    OFF = "off"


class QualityOptions(BaseModel, extra="forbid", frozen=True):
    """The field `quality` of jobs that make artifacts."""

    gate: Gate = Field(
        default=Gate.ON,
        description="on fails a job whose artifact is far worse than its method explains; off only measures.",
    )


class Measurement(BaseModel, frozen=True):
    """A mean over scored tokens, with its standard error."""

    value: float
    standard_error: float


class QualityCard(BaseModel, frozen=True):
    """What an artifact was measured to be, against the original, before its job could succeed.

    Divergences are in nats per token. `scored_tokens` positions of `dataset` were scored in windows of
    `context_length` tokens, the second half of each, the protocol of llama-perplexity. With the gate off a
    figure that is not finite is None.
    """

    dataset: str
    dataset_sha256: str
    context_length: int
    scored_tokens: int
    perplexity: Measurement | None
    reference_perplexity: Measurement
    kl_divergence: Measurement | None
    kl_divergence_p99: float | None
    top1_agreement: Measurement
    generated_text: str
    gate: Gate = Gate.ON


class QuantizationReport(BaseModel, frozen=True):
    """What a method did. `tensor_types` counts tensors by the type they really have."""

    tensor_types: dict[str, int]
    parameter_count: int
    weight_bytes: int
    calibration: CalibrationRecord | None = None

    @property
    def bits_per_weight(self) -> float:
        return self.weight_bytes * 8 / self.parameter_count


def artifact_key(
    source_fingerprint: str, method: dict[str, Any], versions: dict[str, str], inputs: dict[str, str]
) -> str:
    """The content address of an artifact: the same inputs always give the same 64 hex digits.

    `inputs` maps what else the method reads, such as calibration text, to its fingerprint.
    """
    recipe = {"source": source_fingerprint, "method": method, "versions": versions, "inputs": inputs}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
