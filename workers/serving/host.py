"""The serving host: finds a request's model, has it loaded, and passes its engine's answer on.

Run by `uvicorn workers.serving.host:create_host --factory`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import BitmillError, EngineFailed, InvalidParameter, InvalidRequest, ModelNotFound
from app.domain.http_status import status_of
from app.persistence.artifacts import ArtifactRepository
from app.persistence.unit_of_work import Database
from app.settings import Settings, get_settings
from app.storage.artifacts import locate
from app.streaming import ClientGone, RelayResponse, unless_disconnected
from workers.serving.deployment import ServedModel
from workers.serving.pool import ModelPool
from workers.serving.process import RunningEngine
from workers.serving.wire import public_answer, public_error, public_events

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nobody is left to read it; it shows in the access log


def create_host(settings: Settings | None = None, *, pool: ModelPool | None = None) -> FastAPI:
    """The serving host's ASGI application. Tests pass their own settings and pool."""
    settings = settings or get_settings()
    logging.basicConfig(level=settings.log_level)
    # Its line for each request would drown the rest while engines are asked whether they are ready.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    app = FastAPI(title="Bitmill serving host", lifespan=_lifespan)
    app.state.settings = settings
    app.state.database = Database(settings.database)
    app.state.pool = pool or ModelPool(settings)
    app.add_exception_handler(BitmillError, _on_bitmill_error)
    for path in ("/v1/chat/completions", "/v1/completions"):
        app.add_api_route(path, complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/deployments", list_deployments, methods=["GET"])
    app.add_api_route("/v1/deployments/{name:path}", unload, methods=["DELETE"])
    app.add_api_route("/livez", livez, methods=["GET"])
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Idle connections would each hold one of llama.cpp's few HTTP threads.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    # Generation may pause for long between two tokens; a dead engine closes the connection.
    timeout = httpx.Timeout(None, connect=10.0)
    async with httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client:
        app.state.client = client
        try:
            yield
        finally:
            await app.state.pool.close()
            app.state.database.close()


async def complete(request: Request) -> Response:
    """Chat completions and completions: they differ only in the path, which the engine knows as well."""
    body = _parse(await request.body())
    try:
        return await unless_disconnected(request.receive, _forward(request.app, request.url.path, body))
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


async def list_deployments(request: Request) -> dict[str, Any]:
    view = await run_in_threadpool(request.app.state.pool.view)
    return {"object": "list", "data": view}


async def unload(request: Request, name: str) -> dict[str, Any]:
    if not await request.app.state.pool.unload(name):
        raise ModelNotFound(f"The model {name!r} is not loaded; GET /v1/deployments lists what is", param="model")
    return {"model": name, "object": "deployment", "deleted": True}


async def livez() -> dict[str, str]:
    return {"status": "ok"}


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(body).__name__}")
    if not isinstance(body.get("model"), str):
        raise InvalidParameter(f"`model` must be a model's name, not {body.get('model')!r}", param="model")
    return body


async def _forward(app: FastAPI, path: str, body: dict[str, Any]) -> Response:
    model = await run_in_threadpool(_find_model, app.state.database, app.state.settings, body["model"])
    async with AsyncExitStack() as stack:
        engine: RunningEngine = await stack.enter_async_context(app.state.pool.lease(model))
        upstream = await _send(app.state.client, engine, path, body, model.name)
        stack.push_async_callback(upstream.aclose)
        if upstream.status_code < 400 and _is_stream(upstream):
            events = public_events(upstream.aiter_raw(), model.name)
            headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
            # The lease and the connection now belong to the answer, which returns them when it ends.
            owned = stack.pop_all()
            return RelayResponse(events, owned.aclose, status_code=upstream.status_code, headers=headers)
        return await _complete_answer(upstream, model.name)


def _find_model(database: Database, settings: Settings, name: str) -> ServedModel:
    with database.reading() as session:
        row = ArtifactRepository(session).get(name)
        return ServedModel(row.name, locate(row, settings), ArtifactFormat(row.format))


async def _send(
    client: httpx.AsyncClient, engine: RunningEngine, path: str, body: dict[str, Any], public_name: str
) -> httpx.Response:
    request = client.build_request(
        "POST",
        engine.address.url + path,
        content=json.dumps({**body, "model": engine.command.upstream_model}).encode(),
        headers={
            "authorization": f"Bearer {engine.address.api_key}",
            "content-type": "application/json",
            "accept-encoding": "identity",
            # The client below keeps no connection either; told so, the engine frees its thread at once.
            "connection": "close",
        },
    )
    try:
        return await client.send(request, stream=True)
    except httpx.TransportError as error:
        raise _broken(public_name, error) from error


async def _complete_answer(upstream: httpx.Response, public_name: str) -> Response:
    try:
        answer = await upstream.aread()
    except httpx.TransportError as error:
        raise _broken(public_name, error) from error
    if upstream.status_code >= 500:
        log.error("the engine of %s failed (%d): %r", public_name, upstream.status_code, answer[:1000])
        raise EngineFailed(f"the engine of {public_name!r} failed on this request; the host's log has the reason")
    if upstream.status_code >= 400:
        refusal = public_error(upstream.status_code, answer, public_name)
        return Response(refusal, status_code=upstream.status_code, media_type="application/json")
    return Response(public_answer(answer, public_name), media_type="application/json")


def _broken(public_name: str, error: httpx.TransportError) -> EngineFailed:
    log.error("no answer from the engine of %s: %r", public_name, error)
    return EngineFailed(f"the engine of {public_name!r} broke off; send the request again and it is restarted")


def _is_stream(upstream: httpx.Response) -> bool:
    return upstream.headers.get("content-type", "").startswith("text/event-stream")


async def _on_bitmill_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BitmillError)  # noqa: S101 -- registered for this class only
    return JSONResponse({"error": error.to_dict()}, status_code=status_of(error))
