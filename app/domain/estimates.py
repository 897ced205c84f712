"""What an artifact will take on disk and in memory, and what the job that makes it takes, before anything is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, Field

from app.domain.artifacts import ArtifactFormat
from app.domain.evaluation import Name
from app.domain.memory import KERNEL_BYTES, MIB, RUNTIME_BYTES, MemoryEstimate, attention_shape, shared_tokens
from app.domain.quantization.sizes import StoredTensor, WeightsEstimate, estimate_weights
from app.domain.quantization.spec import MethodParams, MethodSpec

# The engine that is taken for each format, and methods whose layouts need the library of kernels.
ENGINES: Final = {ArtifactFormat.GGUF: "llama_cpp", ArtifactFormat.SAFETENSORS: "transformers"}
KERNEL_METHODS: Final = frozenset({"gptq", "awq", "hqq", "autoround"})
# Methods whose layout transformers unpacks to 16 bits as it loads; on a GPU vLLM does not.
UNPACKED_METHODS: Final = frozenset({"fp8", "int8", "int4", "fp4", "qat"})

# A job is two processes, the one that quantizes and the one that proves; the larger of them is its peak. Each has
# its libraries. The first holds beside them some of the largest tensors where it streams, else the whole model, and
# where it looks at calibration data their activations. Measured on the demo model.
JOB_RUNTIME_BYTES: Final = 430 * MIB
JOB_KERNEL_BYTES: Final = 350 * MIB
TENSORS_HELD: Final = 3
MODELS_HELD: Final = 2.0
# Of a training, per weight: itself, its gradient and two moments, in 32 bits each.
TRAINED_BYTES: Final = 16
ACTIVATION_BYTES: Final = 750 * MIB
IMPORTANCE_BYTES: Final = 1800 * MIB
# The second holds the loaded model and, for the positions of one window that are scored, several arrays of
# log-probabilities over the vocabulary in 64 bits: the original's, the artifact's and what their divergence takes.
SCORED_POSITIONS: Final = 256
LOG_PROBS_HELD: Final = 5.5
# Megabytes of 16-bit weights per second, and seconds that every job takes, proof included: benchmarks/methods.py on
# two processor cores. Only where no job of this installation has told better.
FIXED_SECONDS: Final = 8.0
MEGABYTES_PER_SECOND: Final = {
    "none": 60.0, "bitsandbytes": 17.0, "fp8": 25.0, "int8": 30.0, "int4": 30.0, "fp4": 20.0, "gptq": 3.0,
    "awq": 1.9, "autoround": 0.3, "hqq": 8.0, "gguf": 6.0, "qat": 1.0,
}  # fmt: skip


class EstimateRequest(BaseModel, extra="forbid", frozen=True):
    """The body of POST /v1/estimates."""

    model: Name
    method: dict[str, Any]
    context_length: int = Field(default=4096, ge=64, le=10_000_000)
    concurrency: int = Field(default=1, ge=1, le=1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A checkpoint as far as its headers tell."""

    architecture: str
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    @property
    def parameter_count(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a method went, in bytes of the source's weights per second, and where that is from."""

    bytes_per_second: float
    basis: str


def estimate_artifact(spec: MethodSpec, params: MethodParams, model: ModelShape) -> WeightsEstimate:
    """Raises UnsupportedArchitecture or IncompatibleModel where the method cannot take the model."""
    spec.require_groups(params, {name: tensor.shape for name, tensor in model.tensors.items()})
    return estimate_weights(spec, params, model.tensors, model.config)


def estimate_loaded(
    spec: MethodSpec, weights: WeightsEstimate, model: ModelShape, *, context_length: int, concurrency: int,
    on_gpu: bool = False,
) -> MemoryEstimate:  # fmt: skip
    """Memory of the artifact once it is loaded on the engine that serves its format."""
    shape = attention_shape(model.config)
    unpacks = spec.name in UNPACKED_METHODS and not on_gpu
    loaded = weights.total_bytes + (2 * weights.packed_parameters - weights.packed_bytes if unpacks else 0)
    runtime = RUNTIME_BYTES[ENGINES[spec.output]] + (KERNEL_BYTES if spec.name in KERNEL_METHODS else 0)
    tokens = shared_tokens(context_length, concurrency)
    return MemoryEstimate(
        weights_bytes=loaded,
        cache_bytes=shape.cache_bytes(tokens, sequences=concurrency) if shape else 0,
        runtime_bytes=runtime + (shape.scratch_bytes if shape else 0),
    )


def estimate_job(
    spec: MethodSpec, params: MethodParams, weights: WeightsEstimate, model: ModelShape, measured: Speed | None
) -> dict[str, Any]:
    """Peak memory, disk and time of the job that makes the artifact, and what the time rests on."""
    converted = model.weight_bytes if spec.name == "gguf" else 0
    speed = measured or Speed(
        bytes_per_second=MEGABYTES_PER_SECOND[spec.name] * 1e6, basis="benchmarks/methods.py on two processor cores"
    )
    fixed = 0.0 if measured else FIXED_SECONDS
    return {
        "peak_memory_bytes": max(_quantizing_bytes(spec, params, weights, model), _proving_bytes(spec, model)),
        "disk_bytes": weights.total_bytes + converted,
        "seconds": fixed + model.weight_bytes / speed.bytes_per_second,
        "seconds_basis": speed.basis,
    }


def _quantizing_bytes(spec: MethodSpec, params: MethodParams, weights: WeightsEstimate, model: ModelShape) -> int:
    calibrated = params.calibration_wanted() is not None
    if spec.streams and not calibrated:
        return JOB_RUNTIME_BYTES + TENSORS_HELD * weights.largest_tensor_bytes
    looked_at = (IMPORTANCE_BYTES if spec.name == "gguf" else ACTIVATION_BYTES) if calibrated else 0
    if spec.needs_training:
        return JOB_RUNTIME_BYTES + TRAINED_BYTES * model.parameter_count + ACTIVATION_BYTES
    return JOB_RUNTIME_BYTES + int(MODELS_HELD * model.weight_bytes) + looked_at


def _proving_bytes(spec: MethodSpec, model: ModelShape) -> int:
    """The original is measured here too, the first time; it is the larger of the two models."""
    shape = attention_shape(model.config)
    log_probs = int(LOG_PROBS_HELD * SCORED_POSITIONS * shape.vocabulary_size * 8) if shape else 0
    kernels = JOB_KERNEL_BYTES if spec.name in KERNEL_METHODS else 0
    return JOB_RUNTIME_BYTES + model.weight_bytes + log_probs + kernels
