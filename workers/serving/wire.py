"""What engines answer, made to look the same: the public model name, and OpenAI's error object."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx

from app.domain.errors import BitmillError, EngineFailed

log = logging.getLogger(__name__)

DATA = b"data:"
DONE = b"[DONE]"
EVENT_END = b"\n\n"

# What engines call an error that clients of OpenAI know by another code.
ERROR_CODES = {"exceed_context_size_error": "context_length_exceeded"}


def public_answer(body: bytes, public_name: str) -> bytes:
    """A complete answer under the public name. Raises EngineFailed where it is not a JSON object."""
    try:
        return _renamed(body, public_name)
    except ValueError as error:
        log.error("the engine of %s answered with something that is not JSON: %r", public_name, body[:200])
        raise EngineFailed(f"the engine of {public_name!r} gave an answer that is not JSON") from error


def public_error(status: int, body: bytes, public_name: str) -> bytes:
    """A refusal (4xx) as OpenAI's error object with all four fields."""
    try:
        given = json.loads(body)
    except ValueError:
        given = {}
    return json.dumps({"error": _error_object(given, status, public_name)}).encode()


async def public_events(chunks: AsyncIterator[bytes], public_name: str) -> AsyncIterator[bytes]:
    """A stream of server-sent events under the public name. A broken one ends with an error event."""
    rest = b""
    try:
        async for chunk in chunks:
            *events, rest = (rest + chunk).split(EVENT_END)
            if events:
                yield b"".join(_public_event(event, public_name) + EVENT_END for event in events)
        if rest.strip():
            yield _public_event(rest, public_name) + EVENT_END
    except httpx.TransportError as error:
        log.error("the engine of %s broke off its answer: %s", public_name, error)
        yield error_event(EngineFailed(f"the engine of {public_name!r} broke off; send the request again"))
    except ValueError as error:
        log.error("the engine of %s sent an event that is not JSON: %s", public_name, error)
        yield error_event(EngineFailed(f"the engine of {public_name!r} sent an event that is not JSON"))


def error_event(error: BitmillError) -> bytes:
    return DATA + b" " + json.dumps({"error": error.to_dict()}).encode() + EVENT_END


def _public_event(event: bytes, public_name: str) -> bytes:
    return b"\n".join(_public_line(line, public_name) for line in event.split(b"\n"))


def _public_line(line: bytes, public_name: str) -> bytes:
    data = line.removeprefix(DATA).strip()
    if not line.startswith(DATA) or data == DONE:
        return line
    return DATA + b" " + _renamed(data, public_name)


def _renamed(body: bytes, public_name: str) -> bytes:
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was expected, not {body[:100]!r}")
    if "error" in value:
        value = {"error": _error_object(value, 500, public_name)}
    elif value.get("model") == public_name:
        return body
    else:
        value["model"] = public_name
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _error_object(given: Any, status: int, public_name: str) -> dict[str, Any]:
    error = given.get("error") if isinstance(given, dict) else None
    if not isinstance(error, dict):
        error = {"message": str(error or f"the engine of {public_name!r} refused the request ({status})")}
    kind = str(error.get("type") or "invalid_request_error")
    code = error.get("code")
    return {
        "message": str(error.get("message")),
        "type": "invalid_request_error" if kind in ERROR_CODES else kind,
        "param": error.get("param"),
        # llama.cpp repeats the HTTP status here.
        "code": code if isinstance(code, str) else ERROR_CODES.get(kind, "invalid_request"),
    }
