"""Routes that models answer: the serving host checks and answers a request, and its answer passes unchanged."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from app.domain.errors import InvalidParameter, InvalidRequest, ServingUnavailable
from app.persistence.artifacts import ArtifactRepository
from app.persistence.deployments import DeploymentRepository
from app.persistence.unit_of_work import Database
from app.serving_client.client import ServingClient
from app.streaming import CLIENT_CLOSED_REQUEST, ClientGone, RelayResponse, unless_disconnected

router = APIRouter(prefix="/v1", tags=["completions"])


@router.post("/chat/completions", response_model=None)
async def create_chat_completion(request: Request) -> Response:
    raw = await request.body()
    body = _parse(raw)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidParameter(
            f"`messages` must be a list with at least one message{_found(messages)}", param="messages"
        )
    return await _relay(request, body["model"], raw)


@router.post("/completions", response_model=None)
async def create_completion(request: Request) -> Response:
    raw = await request.body()
    body = _parse(raw)
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list) or prompt == []:
        raise InvalidParameter(f"`prompt` must be a string or a list{_found(prompt)}", param="prompt")
    return await _relay(request, body["model"], raw)


@router.post("/embeddings", response_model=None)
async def create_embeddings(request: Request) -> Response:
    raw = await request.body()
    return await _relay(request, _parse(raw)["model"], raw)


@router.post("/responses", response_model=None)
async def create_response(request: Request) -> Response:
    raw = await request.body()
    return await _relay(request, _parse(raw)["model"], raw)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:  # the latter where lists are nested by the thousand
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(body).__name__}")
    # What cannot be printed, such as half a character, no database takes either.
    if not isinstance(body.get("model"), str) or not body["model"] or not body["model"].isprintable():
        raise InvalidParameter(f"`model` must be the name of a model{_found(body.get('model'))}", param="model")
    return body


def _found(value: Any) -> str:
    return "; it is missing" if value is None else f", not {value!r}"


async def _relay(request: Request, model: str, raw: bytes) -> Response:
    """The serving host's answer. A client that hangs up ends the request there too."""
    serving: ServingClient = request.app.state.serving
    try:
        answer = await unless_disconnected(request.receive, serving.forward(request.url.path, raw))
    except ServingUnavailable:
        # The host would have said that there is no such model; without it, that is still what is wrong.
        await run_in_threadpool(_require_model, request.app.state.database, model)
        raise
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return RelayResponse(answer.chunks, answer.aclose, status_code=answer.status, headers=answer.headers)


def _require_model(database: Database, name: str) -> None:
    """Raises ModelNotFound. Models on other servers have no artifact."""
    with database.reading() as session:
        if DeploymentRepository(session).find(name) is None:
            ArtifactRepository(session).get(name)
