"""Deployments and engines: the serving host has them, the API passes requests on."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.domain.serving import CreateDeployment
from app.serving_client.client import ServingClient

router = APIRouter(prefix="/v1", tags=["deployments"])


@router.get("/deployments", response_model=None)
async def list_deployments(request: Request) -> Response:
    return await _relay(request, "GET", "/v1/deployments")


@router.post("/deployments", status_code=201, response_model=None)
async def create_deployment(request: Request, deployment: CreateDeployment) -> Response:
    return await _relay(request, "POST", "/v1/deployments", deployment.model_dump_json(exclude_unset=True).encode())


@router.get("/deployments/{name:path}", response_model=None)
async def get_deployment(request: Request, name: str) -> Response:
    return await _relay(request, "GET", f"/v1/deployments/{quote(name, safe='')}")


@router.delete("/deployments/{name:path}", response_model=None)
async def delete_deployment(request: Request, name: str) -> Response:
    return await _relay(request, "DELETE", f"/v1/deployments/{quote(name, safe='')}")


@router.get("/engines", response_model=None)
async def list_engines(request: Request) -> Response:
    return await _relay(request, "GET", "/v1/engines")


async def _relay(request: Request, method: str, path: str, body: bytes | None = None) -> Response:
    serving: ServingClient = request.app.state.serving
    answer = await serving.ask(method, path, body)
    return Response(answer.body, status_code=answer.status, headers=answer.headers)
