"""OpenAI's fine-tuning routes."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse

from app.api.dependencies import FineTuning
from app.api.events import answer_events, number_after
from app.api.fine_tuning_views import CHECKPOINT_PREFIX, EVENT_PREFIX, checkpoint_view, event_view, job_view
from app.api.schemas import list_view
from app.domain.fine_tuning import FineTuningRequest

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

# The filter by metadata comes as `metadata[key]=value`.
METADATA_FIELD: Final = "metadata["


@router.post("")
def create_job(body: FineTuningRequest, jobs: FineTuning) -> dict[str, Any]:
    return job_view(jobs.submit(body))


@router.get("")
def list_jobs(
    request: Request, jobs: FineTuning, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
) -> dict[str, Any]:
    """Jobs, newest first; `metadata[key]=value` narrows them."""
    wanted = {
        key.removeprefix(METADATA_FIELD).removesuffix("]"): value
        for key, value in request.query_params.items()
        if key.startswith(METADATA_FIELD)
    }
    rows, has_more = jobs.page(limit=limit, after=after, metadata=wanted)
    return list_view([job_view(row) for row in rows], has_more)


@router.get("/{job_id}")
def get_job(job_id: str, jobs: FineTuning) -> dict[str, Any]:
    return job_view(jobs.get(job_id))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: str, jobs: FineTuning) -> dict[str, Any]:
    return job_view(jobs.cancel(job_id))


@router.post("/{job_id}/pause")
def pause_job(job_id: str, jobs: FineTuning) -> dict[str, Any]:
    return job_view(jobs.pause(job_id))


@router.post("/{job_id}/resume")
def resume_job(job_id: str, jobs: FineTuning) -> dict[str, Any]:
    return job_view(jobs.resume(job_id))


@router.get("/{job_id}/events", response_model=None)
def list_events(
    request: Request,
    job_id: str,
    jobs: FineTuning,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after: str | None = None,
    stream: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> dict[str, Any] | StreamingResponse:
    """Events, newest first as OpenAI lists them. With `stream=true` server-sent events, oldest first, to the end."""
    if stream:
        after = last_event_id or after
        return answer_events(request, jobs, job_id, after=after, limit=limit, stream=True, view=event_view)
    rows = jobs.newest_events(job_id, before=number_after(after, EVENT_PREFIX), limit=limit + 1)
    return list_view([event_view(row) for row in rows[:limit]], len(rows) > limit)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, jobs: FineTuning, limit: Annotated[int, Query(ge=1, le=100)] = 10, after: str | None = None
) -> dict[str, Any]:
    """What the training saved on its way, newest first."""
    job = jobs.get(job_id)
    before = number_after(after, CHECKPOINT_PREFIX)
    rows = jobs.newest_events(job_id, before=before, limit=limit + 1, type_="checkpoint")
    items = [checkpoint_view(row, job) for row in rows[:limit]]
    ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
    return list_view(items, len(rows) > limit) | ends
