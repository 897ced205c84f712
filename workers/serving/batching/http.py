"""What the engine's applications share."""

from __future__ import annotations

import json
import secrets
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from app.domain.errors import AuthenticationFailed, BitmillError, InvalidRequest
from app.domain.http_status import status_of


async def health() -> dict[str, str]:
    return {"status": "ok"}


def require_key(request: Request) -> None:
    """Raises AuthenticationFailed."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not secrets.compare_digest(given.encode(), request.app.state.api_key.encode()):
        raise AuthenticationFailed("this engine answers its serving host only")


async def read_body(request: Request) -> Any:
    """Raises AuthenticationFailed for whoever does not have the engine's key, InvalidRequest for no JSON."""
    require_key(request)
    try:
        return json.loads(await request.body())
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error


async def on_bitmill_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BitmillError)  # noqa: S101 -- registered for this class only
    return JSONResponse({"error": error.to_dict()}, status_code=status_of(error))
