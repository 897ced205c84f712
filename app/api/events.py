"""A job's events as a stream: the same rows that polling reads, in the server-sent events format.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from app.api.schemas import EVENT_PREFIX, event_view, list_view
from app.domain.errors import InvalidParameter
from app.persistence.tables import JobEventRow
from app.services.job_service import JobService

# How an event is shown to a client.
View = Callable[[JobEventRow], dict[str, Any]]

# Less than what the column of their numbers holds.
MAX_EVENT_DIGITS = 18
POLL_SECONDS = 0.25
# Proxies close connections that stay silent; a comment line is ignored by clients.
KEEP_ALIVE_SECONDS = 15.0


def answer_events(
    request: Request, jobs: JobService, job_id: str, *, after: str | None, limit: int, stream: bool,
    view: View = event_view,
) -> dict[str, Any] | StreamingResponse:  # fmt: skip
    """A page of a job's events above the one named `after`, or all of them as a stream until the job ends."""
    number = number_after(after, EVENT_PREFIX) or 0
    if stream:
        jobs.get(job_id)  # an unknown job is a 404, not an empty stream
        return StreamingResponse(stream_events(request, jobs, job_id, number, view), media_type="text/event-stream")
    rows, _ = jobs.events(job_id, after=number, limit=limit + 1)
    return list_view([view(row) for row in rows[:limit]], len(rows) > limit)


def number_after(event_id: str | None, prefix: str) -> int | None:
    """The number in the id that a list goes on from, whatever kind of job it is of. Raises InvalidParameter.

    `prefix` is what ids of this list look like.
    """
    if not event_id:
        return None
    number = event_id.rpartition("-")[2]
    if not number.isdecimal() or len(number) > MAX_EVENT_DIGITS:
        raise InvalidParameter(f"{event_id!r} is no id from this list; they look like '{prefix}42'", param="after")
    return int(number)


async def stream_events(
    request: Request, jobs: JobService, job_id: str, after: int, view: View = event_view
) -> AsyncIterator[str]:
    """Holds no database session between reads. Ends with the job, or with the client's connection."""
    last_sent = time.monotonic()
    while not await request.is_disconnected():
        rows, ended = await run_in_threadpool(jobs.events, job_id, after=after)
        for row in rows:
            after = row.id
            last_sent = time.monotonic()
            yield _format(row, view)
        if ended and not rows:
            return
        if time.monotonic() - last_sent > KEEP_ALIVE_SECONDS:
            last_sent = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(0 if ended else POLL_SECONDS)


def _format(row: JobEventRow, view: View) -> str:
    shown = view(row)
    return f"id: {shown['id']}\nevent: {row.type}\ndata: {json.dumps(shown)}\n\n"
