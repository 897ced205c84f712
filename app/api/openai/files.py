"""OpenAI's files routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.requests import ClientDisconnect

from app.api.dependencies import Files
from app.api.schemas import file_view, list_view
from app.api.uploads import UploadForm, boundary_of
from app.domain.errors import BitmillError
from app.domain.files import UPLOADABLE
from app.persistence.tables import FileRow
from app.services.files import FileService
from app.streaming import CLIENT_CLOSED_REQUEST

# Uploads are received here, and have a limit of their own.
UPLOADS: Final = "/v1/files"

router = APIRouter(prefix=UPLOADS, tags=["files"])

# What arrives is parsed and written in pieces of this size, each in one visit to a thread.
PIECE_BYTES: Final = 1024**2
# A form's boundaries and its other field take less than this.
MAX_FORM_BYTES: Final = 64 * 1024
# How much of a refused upload is still read, and for how long: a client that is busy sending reads no answer.
COURTESY_BYTES: Final = 16 * 1024**2
COURTESY_SECONDS: Final = 10.0

UPLOAD_SCHEMA: Final = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": [purpose.value for purpose in UPLOADABLE]},
    },
}


@router.post(
    "",
    response_model=None,
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": UPLOAD_SCHEMA}}}},
)
async def create_file(request: Request, files: Files) -> Response:
    """Receives a file. It goes to the disk as it arrives; FastAPI's own forms would keep it elsewhere first."""
    chunks = request.stream()
    try:
        return JSONResponse(file_view(await _receive(request, chunks, files)))
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    except BitmillError:
        if "expect" not in request.headers:  # whoever waits for `100 Continue` has not begun to send
            await _read_on(chunks)
        raise


async def _receive(request: Request, chunks: AsyncIterator[bytes], files: FileService) -> FileRow:
    boundary = boundary_of(request.headers.get("content-type"))
    stated = int(request.headers.get("content-length", 0))
    with await run_in_threadpool(files.stage, max(stated - MAX_FORM_BYTES, 0)) as staged:
        form = UploadForm(boundary, staged)
        async for piece in _pieces(chunks):
            await run_in_threadpool(form.feed, piece)
        form.finish()
        return await run_in_threadpool(files.add, staged, form.filename, form.purpose)


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        if len(waiting) >= PIECE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


async def _read_on(chunks: AsyncIterator[bytes]) -> None:
    rest = COURTESY_BYTES
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(COURTESY_SECONDS):
            async for chunk in chunks:
                rest -= len(chunk)
                if rest < 0:
                    return


@router.get("")
def list_files(
    files: Files,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    rows, has_more = files.page(limit=limit, after=after, purpose=purpose, newest_first=order == "desc")
    ends = {"first_id": rows[0].id if rows else None, "last_id": rows[-1].id if rows else None}
    return list_view([file_view(row) for row in rows], has_more) | ends


@router.get("/{file_id}")
def get_file(file_id: str, files: Files) -> dict[str, Any]:
    return file_view(files.get(file_id))


@router.get("/{file_id}/content", response_class=FileResponse)
def get_content(file_id: str, files: Files) -> FileResponse:
    row, path = files.content(file_id)
    return FileResponse(path, media_type="application/octet-stream", filename=row.filename)


@router.delete("/{file_id}")
def delete_file(file_id: str, files: Files) -> dict[str, Any]:
    return {"id": files.delete(file_id).id, "object": "file", "deleted": True}
