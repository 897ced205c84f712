"""Routes that models answer: the serving host checks and answers a request, and its answer passes unchanged."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from app.domain.errors import ServingUnavailable
from app.json_body import parse_body
from app.persistence.artifacts import ArtifactRepository
from app.persistence.deployments import DeploymentRepository
from app.persistence.unit_of_work import Database
from app.serving_client.client import ServingClient
from app.streaming import CLIENT_CLOSED_REQUEST, ClientGone, RelayResponse, unless_disconnected

router = APIRouter(prefix="/v1", tags=["completions"])


@router.post("/chat/completions", response_model=None)
@router.post("/completions", response_model=None)
@router.post("/embeddings", response_model=None)
@router.post("/responses", response_model=None)
async def relay(request: Request) -> Response:
    """The serving host's answer, refusals of a wrong body too. A client that hangs up ends the request there."""
    serving: ServingClient = request.app.state.serving
    raw = await request.body()
    try:
        answer = await unless_disconnected(request.receive, serving.forward(request.url.path, raw))
    except ServingUnavailable:
        # The host would have said what is wrong with the request; without it, that is still what is wrong first.
        await run_in_threadpool(_require_model, request.app.state.database, parse_body(raw)["model"])
        raise
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return RelayResponse(answer.chunks, answer.aclose, status_code=answer.status, headers=answer.headers)


def _require_model(database: Database, name: str) -> None:
    """Raises ModelNotFound. Models on other servers have no artifact."""
    with database.reading() as session:
        if DeploymentRepository(session).find(name) is None:
            ArtifactRepository(session).get(name)
