"""The serving host: finds a request's model, has it loaded, and passes its engine's answer on.

Run by `uvicorn workers.serving.host:create_host --factory`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from app.body_limit import BodyLimit
from app.domain.errors import BitmillError
from app.error_handlers import install_error_handlers
from app.http_transport import fast_transport
from app.installation import checked_installation
from app.json_body import parse_body
from app.persistence.unit_of_work import Database
from app.processes import keep_what_is_loaded
from app.settings import Settings, get_settings
from app.streaming import CLIENT_CLOSED_REQUEST, ClientGone, unless_disconnected
from workers.serving import deployments, scrape
from workers.serving.contract.parsing import REQUESTS, parse_request, without_nulls
from workers.serving.contract.responses import ResponsesRequest
from workers.serving.forwarding import Forwarder
from workers.serving.models import ModelDirectory
from workers.serving.pool import ModelPool
from workers.serving.responses import as_response, renamed


def create_host(settings: Settings | None = None, *, pool: ModelPool | None = None) -> FastAPI:
    """The serving host's ASGI application. Tests pass their own settings and pool."""
    settings = settings or get_settings()
    logging.basicConfig(level=settings.log_level)
    # Its line for each request would drown the rest while engines are asked whether they are ready.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    app = FastAPI(title="Bitmill serving host", lifespan=_lifespan)
    app.state.settings = settings
    app.state.database = Database(settings.database)
    app.state.models = ModelDirectory(app.state.database, settings)
    app.state.pool = pool or ModelPool(settings)
    app.state.tasks = set()
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    install_error_handlers(app)
    for path in REQUESTS:
        app.add_route(path, complete, methods=["POST"])
    app.add_route("/v1/responses", respond, methods=["POST"])
    app.include_router(deployments.router)
    app.add_api_route("/metrics", scrape.metrics, methods=["GET"], response_model=None)
    app.add_api_route("/livez", livez, methods=["GET"])
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    transport = fast_transport()
    async with (
        checked_installation(app.state.database, app.state.settings),
        httpx.AsyncClient(transport=transport, trust_env=False) as client,
    ):
        app.state.client = client
        app.state.forwarder = Forwarder(app.state.pool, transport, app.state.settings)
        pinned = asyncio.create_task(deployments.load_pinned(app.state.models, app.state.pool))
        keep_what_is_loaded()
        try:
            yield
        finally:
            await _cancel({pinned, *app.state.tasks})
            await app.state.pool.close()
            app.state.database.close()


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def complete(request: Request) -> Response:
    """Every route that an engine answers: they differ only in the path, which the engine knows as well."""
    return await _complete(request, request.url.path, parse_body(await request.body()))


async def respond(request: Request) -> Response:
    """A response is a chat completion in other words, for every engine alike."""
    body = parse_body(await request.body())
    parsed = parse_request(ResponsesRequest, body)
    try:
        answer = await _complete(request, "/v1/chat/completions", parsed.chat_body(without_nulls(body)))
    except BitmillError as error:
        raise renamed(error) from error
    return answer if answer.status_code == CLIENT_CLOSED_REQUEST else as_response(answer, parsed)


async def _complete(request: Request, path: str, body: dict[str, Any]) -> Response:
    # What is loaded is known; only for what is not, the database is asked.
    model = request.app.state.pool.loaded(body["model"])
    if model is None:
        model = await run_in_threadpool(request.app.state.models.find, body["model"])
    forwarder: Forwarder = request.app.state.forwarder
    try:
        return await unless_disconnected(request.receive, forwarder.forward(model, path, body))
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED_REQUEST)


async def livez() -> dict[str, str]:
    return {"status": "ok"}
