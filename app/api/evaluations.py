"""Evaluations: measuring a model, as jobs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from app.api.dependencies import Evaluations
from app.api.events import answer_events
from app.api.schemas import evaluation_view, list_view
from app.domain.evaluation import EvaluationRequest

router = APIRouter(prefix="/v1/evaluations", tags=["evaluations"])


@router.post("", status_code=201)
def create_evaluation(body: EvaluationRequest, evaluations: Evaluations) -> dict[str, Any]:
    return evaluation_view(evaluations.submit(body))


@router.get("")
def list_evaluations(
    evaluations: Evaluations,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
    status: str | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    rows, has_more = evaluations.page(limit=limit, after=after, status=status, model=model)
    return list_view([evaluation_view(row) for row in rows], has_more)


@router.get("/{job_id}")
def get_evaluation(job_id: str, evaluations: Evaluations) -> dict[str, Any]:
    return evaluation_view(evaluations.get(job_id))


@router.post("/{job_id}/cancel")
def cancel_evaluation(job_id: str, evaluations: Evaluations) -> dict[str, Any]:
    return evaluation_view(evaluations.cancel(job_id))


@router.get("/{job_id}/events", response_model=None)
def list_events(
    request: Request,
    job_id: str,
    evaluations: Evaluations,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: str | None = None,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> dict[str, Any] | StreamingResponse:
    """Events, oldest first. With `stream=true` they come as server-sent events until the job ends."""
    return answer_events(request, evaluations, job_id, after=last_event_id or after, limit=limit, stream=stream)
