"""Requests as they may come, and rows as clients see them."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, Field, StringConstraints

from app.domain.artifacts import QualityOptions
from app.domain.contract import JobContract
from app.domain.jobs import JobState, public_status
from app.persistence.tables import ArtifactRow, DeploymentRow, FileRow, JobEventRow, JobRow, WorkerRow

EVENT_PREFIX: Final = "qevent-"

MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class CreateQuantizationJob(BaseModel, extra="forbid"):
    model: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description="org/name[@revision] on the hub, a folder or .gguf file under the source roots, the id of an "
        "uploaded file, or demo/…"
    )
    method: dict[str, Any] = Field(
        description="The method's `type` and its parameters; GET /v1/quantization/methods has their schemas.",
        examples=[{"type": "gguf", "quantization": "Q4_K_M"}],
    )
    suffix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = Field(
        default=None, description="Ends the new model's name."
    )
    quality: QualityOptions = Field(default_factory=QualityOptions)
    contract: JobContract | None = Field(
        default=None, description="Terms that the result must meet as measured. The method `auto` needs one."
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=16)


def job_view(row: JobRow) -> dict[str, Any]:
    """A job in the shape of OpenAI's fine-tuning job."""
    return {
        "object": "quantization.job",
        "id": row.id,
        "status": public_status(JobState(row.state)),
        "created_at": int(row.created_at),
        "started_at": _seconds(row.started_at),
        "finished_at": _seconds(row.finished_at),
        "model": row.model,
        "method": row.method,
        "suffix": row.suffix,
        "quality_gate": row.gate,
        "progress": {"fraction": row.fraction, "stage": row.stage, "eta_seconds": row.eta_seconds},
        "quantized_model": row.quantized_model,
        "reused": row.reused,
        "quality": row.quality,
        "contract": (row.request or {}).get("contract"),
        "contract_proof": row.result,
        "predicted": row.predicted,
        "actual": row.actual,
        "error": row.error,
        "attempt": row.attempt,
        "worker": row.worker_id,
        "metadata": row.user_metadata,
    }


def evaluation_view(row: JobRow) -> dict[str, Any]:
    """An evaluation in the shape of the other jobs, with what was asked for beside it."""
    return {
        "object": "evaluation",
        "id": row.id,
        "status": public_status(JobState(row.state)),
        "created_at": int(row.created_at),
        "started_at": _seconds(row.started_at),
        "finished_at": _seconds(row.finished_at),
        **(row.request or {}),
        "progress": {"fraction": row.fraction, "stage": row.stage, "eta_seconds": row.eta_seconds},
        "result": row.result,
        "error": row.error,
        "attempt": row.attempt,
        "worker": row.worker_id,
    }


def event_view(row: JobEventRow) -> dict[str, Any]:
    return {
        "object": "quantization.job.event",
        "id": f"{EVENT_PREFIX}{row.id}",
        "created_at": int(row.created_at),
        "level": row.level,
        "type": row.type,
        "message": row.message,
        "data": row.data,
    }


def model_view(row: ArtifactRow) -> dict[str, Any]:
    """OpenAI's model object, with what Bitmill knows beside it."""
    return {
        "id": row.name,
        "object": "model",
        "created": int(row.created_at),
        "owned_by": "bitmill",
        "bitmill": {
            "kind": row.kind,
            "format": row.format,
            "method": row.method,
            "source": row.source,
            "size_bytes": row.size_bytes,
            "parameter_count": row.parameter_count,
            "bits_per_weight": row.bits_per_weight,
            "tensor_types": row.tensor_types,
            "calibration": row.calibration,
            "quality": row.quality,
            "evaluation": row.evaluation,
            "seconds": row.seconds,
            "peak_memory_bytes": row.peak_memory_bytes,
            "sha256": row.manifest_sha256,
            "versions": row.versions,
            "job": row.job_id,
        },
    }


def remote_model_view(row: DeploymentRow) -> dict[str, Any]:
    """A model on another server, as far as it is known here."""
    remote = {"kind": "remote", "server": row.options["remote"]["server"], "model": row.options["remote"]["model"]}
    return {
        "id": row.model, "object": "model", "created": int(row.created_at), "owned_by": "bitmill", "bitmill": remote,
    }  # fmt: skip


def file_view(row: FileRow) -> dict[str, Any]:
    """OpenAI's file object, with what Bitmill knows beside it."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.size_bytes,
        "created_at": int(row.created_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "bitmill": {"sha256": row.sha256},
    }


def worker_view(row: WorkerRow) -> dict[str, Any]:
    return {
        "object": "worker",
        "id": row.id,
        "queues": row.queues,
        "hardware": row.hardware,
        "methods": row.methods,
        "version": row.version,
        "started_at": int(row.started_at),
        "heartbeat_at": int(row.heartbeat_at),
        "current_job": row.current_job_id,
    }


def list_view(items: list[dict[str, Any]], has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": items, "has_more": has_more}


def _seconds(moment: float | None) -> int | None:
    return int(moment) if moment is not None else None
