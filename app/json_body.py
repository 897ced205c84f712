"""The bodies of requests for a model: read by the serving host, and by the API where there is no host to read them."""

from __future__ import annotations

import json
from typing import Any

from app.domain.errors import InvalidParameter, InvalidRequest


def parse_body(raw: bytes) -> dict[str, Any]:
    """Raises InvalidRequest where it is no JSON object, InvalidParameter where it names no model."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:  # the latter where lists are nested by the thousand
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(body).__name__}")
    # What cannot be printed, such as half a character, no database takes either.
    model = body.get("model")
    if not isinstance(model, str) or not model or not model.isprintable():
        raise InvalidParameter(f"`model` must be a model's name, not {model!r}", param="model")
    return body
