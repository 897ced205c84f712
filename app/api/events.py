"""A job's events as a stream: the same rows that polling reads, in the server-sent events format.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from app.api.schemas import event_view
from app.persistence.tables import JobEventRow
from app.services.quantization_jobs import QuantizationJobService

POLL_SECONDS = 0.25
# Proxies close connections that stay silent; a comment line is ignored by clients.
KEEP_ALIVE_SECONDS = 15.0


async def stream_events(request: Request, jobs: QuantizationJobService, job_id: str, after: int) -> AsyncIterator[str]:
    """Holds no database session between reads. Ends with the job, or with the client's connection."""
    last_sent = time.monotonic()
    while not await request.is_disconnected():
        rows, ended = await run_in_threadpool(jobs.events, job_id, after=after)
        for row in rows:
            after = row.id
            last_sent = time.monotonic()
            yield _format(row)
        if ended and not rows:
            return
        if time.monotonic() - last_sent > KEEP_ALIVE_SECONDS:
            last_sent = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(0 if ended else POLL_SECONDS)


def _format(row: JobEventRow) -> str:
    view = event_view(row)
    return f"id: {view['id']}\nevent: {row.type}\ndata: {json.dumps(view)}\n\n"
