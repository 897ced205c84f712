"""What is loaded on the serving host, and freeing it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from app.domain.errors import ModelNotFound
from app.serving_client.client import ServingClient

router = APIRouter(prefix="/v1/deployments", tags=["deployments"])


@router.get("")
async def list_deployments(request: Request) -> dict[str, Any]:
    serving: ServingClient = request.app.state.serving
    return await serving.deployments()


@router.delete("/{name:path}")
async def unload(request: Request, name: str) -> dict[str, Any]:
    serving: ServingClient = request.app.state.serving
    if not await serving.unload(name):
        raise ModelNotFound(f"The model {name!r} is not loaded; GET /v1/deployments lists what is", param="model")
    return {"model": name, "object": "deployment", "deleted": True}
