"""Rows of jobs as they are when they are new, whoever makes them."""

from __future__ import annotations

import time
from typing import Any

from app.domain.artifacts import Gate
from app.domain.evaluation import EvaluationRequest
from app.domain.jobs import JobKind, JobState, new_id
from app.persistence.tables import JobRow


def new_quantization(
    model: str, method: dict[str, Any], queue: str, *, suffix: str | None = None, gate: Gate = Gate.ON,
    metadata: dict[str, str] | None = None, request: dict[str, Any] | None = None,
    predicted: dict[str, Any] | None = None,
) -> JobRow:  # fmt: skip
    now = time.time()
    return JobRow(
        id=new_id("qjob"), kind=JobKind.QUANTIZATION, state=JobState.QUEUED, queue=queue, model=model, method=method,
        suffix=suffix, gate=gate, user_metadata=metadata or {}, request=request, predicted=predicted, created_at=now,
        dispatched_at=now,
    )  # fmt: skip


def new_evaluation(request: EvaluationRequest, queue: str) -> JobRow:
    now = time.time()
    return JobRow(
        id=new_id("eval"), kind=JobKind.EVALUATION, state=JobState.QUEUED, queue=queue, model=request.model, method={},
        request=request.model_dump(mode="json"), user_metadata={}, created_at=now, dispatched_at=now,
    )  # fmt: skip
