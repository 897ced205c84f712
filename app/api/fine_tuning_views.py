"""Fine-tuning jobs, their events and their checkpoints in OpenAI's shapes, with what Bitmill knows beside them."""

from __future__ import annotations

import time
from typing import Any, Final

from app.domain.fine_tuning import FineTuningRequest
from app.domain.jobs import JobState, public_status
from app.persistence.tables import JobEventRow, JobRow

EVENT_PREFIX: Final = "ftevent-"
CHECKPOINT_PREFIX: Final = "ftckpt-"
# OpenAI's client shows these two; everything that is not a metric is a message.
METRICS: Final = "metrics"


def job_view(row: JobRow) -> dict[str, Any]:
    request = FineTuningRequest.model_validate(row.request)
    result = row.result or {}
    hyperparameters = request.wanted.model_dump(mode="json") | result.get("hyperparameters", {})
    return {
        "object": "fine_tuning.job",
        "id": row.id,
        "status": public_status(JobState(row.state)),
        "created_at": int(row.created_at),
        "finished_at": int(row.finished_at) if row.finished_at is not None else None,
        "estimated_finish": int(time.time() + row.eta_seconds) if row.eta_seconds is not None else None,
        "model": row.model,
        "fine_tuned_model": row.quantized_model,
        "organization_id": "bitmill",
        "training_file": request.training_file,
        "validation_file": request.validation_file,
        "result_files": result.get("result_files", []),
        "trained_tokens": result.get("trained_tokens"),
        "seed": request.seed or 0,
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "integrations": [],
        "metadata": row.user_metadata,
        "user_provided_suffix": row.suffix,
        "error": row.error,
        "bitmill": {
            **request.bitmill.model_dump(mode="json"),
            "progress": {"fraction": row.fraction, "stage": row.stage, "eta_seconds": row.eta_seconds},
            "result": row.result,
            "started_at": int(row.started_at) if row.started_at is not None else None,
            "attempt": row.attempt,
            "worker": row.worker_id,
        },
    }


def event_view(row: JobEventRow) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.event",
        "id": f"{EVENT_PREFIX}{row.id}",
        "created_at": int(row.created_at),
        "level": row.level,
        "type": METRICS if row.type == METRICS else "message",
        "message": row.message,
        "data": row.data,
    }


def checkpoint_view(row: JobEventRow, job: JobRow) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": f"{CHECKPOINT_PREFIX}{row.id}",
        "created_at": int(row.created_at),
        "fine_tuning_job_id": job.id,
        "fine_tuned_model_checkpoint": row.data.get("model"),
        "step_number": row.data["step"],
        "metrics": {"step": row.data["step"], **row.data["metrics"]},
    }
