"""Health, workers and metrics: what load balancers and dashboards ask for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.api.dependencies import Workers
from app.api.schemas import list_view, worker_view

health = APIRouter(tags=["operations"])
router = APIRouter(prefix="/v1", tags=["operations"])


@health.get("/livez")
async def livez() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@health.get("/readyz")
def readyz(request: Request, workers: Workers) -> JSONResponse:
    """The database answers; 503 if it does not. A missing worker is shown but stops no other route."""
    try:
        with request.app.state.database.reading() as session:
            session.execute(text("SELECT 1"))
        live = len(workers.live())
    except SQLAlchemyError as error:
        return JSONResponse({"status": "unavailable", "database": type(error).__name__}, status_code=503)
    return JSONResponse({"status": "ok", "database": "ok", "workers": live})


@health.get("/metrics")
def metrics(request: Request) -> Response:
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/workers")
def list_workers(workers: Workers) -> dict[str, Any]:
    return list_view([worker_view(row) for row in workers.live()])
