"""Quantization jobs and methods."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from app.api.dependencies import Jobs, Workers
from app.api.events import answer_events
from app.api.schemas import CreateQuantizationJob, job_view, list_view
from app.services.quantization_jobs import NewJob

router = APIRouter(prefix="/v1/quantization", tags=["quantization"])


@router.post("/jobs", status_code=201)
def create_job(body: CreateQuantizationJob, jobs: Jobs) -> dict[str, Any]:
    new = NewJob(
        model=body.model,
        method=body.method,
        suffix=body.suffix,
        gate=body.quality.gate,
        contract=body.contract,
        metadata=body.metadata,
    )
    return job_view(jobs.submit(new))


@router.get("/jobs")
def list_jobs(
    jobs: Jobs,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
    status: str | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    rows, has_more = jobs.page(limit=limit, after=after, status=status, model=model)
    return list_view([job_view(row) for row in rows], has_more)


@router.get("/jobs/{job_id}")
def get_job(job_id: str, jobs: Jobs) -> dict[str, Any]:
    return job_view(jobs.get(job_id))


@router.post("/jobs/{job_id}/cancel")
def cancel_job(job_id: str, jobs: Jobs) -> dict[str, Any]:
    return job_view(jobs.cancel(job_id))


@router.get("/jobs/{job_id}/events", response_model=None)
def list_events(
    request: Request,
    job_id: str,
    jobs: Jobs,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: str | None = None,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> dict[str, Any] | StreamingResponse:
    """Events, oldest first. With `stream=true` they come as server-sent events until the job ends."""
    return answer_events(request, jobs, job_id, after=last_event_id or after, limit=limit, stream=stream)


@router.get("/methods")
def list_methods(workers: Workers) -> dict[str, Any]:
    return list_view(workers.catalog())
