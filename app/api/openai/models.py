"""OpenAI's models routes. Names hold slashes and colons; clients may or may not escape them."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, PlainTextResponse, Response

from app.api.dependencies import Exports, Models
from app.api.schemas import list_view, model_view, remote_model_view
from app.domain.errors import ServingUnavailable

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models")
def list_models(models: Models) -> dict[str, Any]:
    stored = [model_view(row) for row in models.list()]
    return list_view([*stored, *map(remote_model_view, models.remote())])


@router.get("/models/{name:path}/files")
def list_model_files(name: str, exports: Exports) -> dict[str, Any]:
    """What a result consists of, with checksums: the same as in its manifest, and a fresh card."""
    files = exports.files(name)
    return list_view([
        {"object": "model.file", "name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256}
        for file in files
    ])  # fmt: skip


@router.get("/models/{name:path}/files/{file:path}", response_model=None)
def get_model_file(name: str, file: str, exports: Exports) -> Response:
    """One file's content. It answers requests for a range, so that a download can go on."""
    found = exports.get(name, file)
    if found.path is not None:
        return FileResponse(found.path, media_type="application/octet-stream")
    return PlainTextResponse(found.text)


@router.get("/models/{name:path}")
def get_model(name: str, models: Models) -> dict[str, Any]:
    remote = {row.model: row for row in models.remote()}
    return remote_model_view(remote[name]) if name in remote else model_view(models.get(name))


@router.delete("/models/{name:path}")
async def delete_model(request: Request, name: str, models: Models) -> dict[str, Any]:
    row = await run_in_threadpool(models.delete, name)
    await _unload(request, name)
    return {"id": row.name, "object": "model", "deleted": True}


async def _unload(request: Request, name: str) -> None:
    try:
        await request.app.state.serving.unload(name)
    except ServingUnavailable:
        log.info("no serving host is there to unload %s from", name)
