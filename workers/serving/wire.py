"""What engines answer, made to look the same: the public model name, and OpenAI's error object."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from app.domain.errors import BitmillError, EngineFailed

log = logging.getLogger(__name__)

DATA = b"data:"
DONE = b"[DONE]"
EVENT_END = b"\n\n"

# What engines call an error that clients of OpenAI know by another code.
ERROR_CODES = {"exceed_context_size_error": "context_length_exceeded"}


# Is shown every object of an answer as it passes.
Observer = Callable[[dict[str, Any]], None]


def ignore(answer: dict[str, Any]) -> None:
    """The observer that does nothing."""


def public_answer(body: bytes, public_name: str, observe: Observer = ignore) -> bytes:
    """A complete answer under the public name. Raises EngineFailed where it is not a JSON object."""
    try:
        return orjson.dumps(_renamed(body, public_name, observe))
    except ValueError as error:
        log.error("the engine of %s answered with something that is not JSON: %r", public_name, body[:200])
        raise EngineFailed(f"the engine of {public_name!r} gave an answer that is not JSON") from error


def public_error(status: int, body: bytes, public_name: str) -> bytes:
    """A refusal (4xx) as OpenAI's error object with all four fields."""
    try:
        given = orjson.loads(body)
    except ValueError:
        given = {}
    return orjson.dumps({"error": _error_object(given, status, public_name)})


async def public_events(
    chunks: AsyncIterator[bytes], public_name: str, observe: Observer = ignore, *, hide_usage: bool = False
) -> AsyncIterator[bytes]:
    """A stream of server-sent events under the public name. A broken one ends with an error event.

    With `hide_usage` the engine was asked for usage on the host's account, and the client did not ask.
    """
    rest = b""
    event = _Event(public_name, observe, hide_usage)
    try:
        async for chunk in chunks:
            # Lines may end as in files of Windows, and a chunk between the two characters.
            *events, rest = (rest + chunk).replace(b"\r\n", b"\n").split(EVENT_END)
            if public := b"".join(map(event.public, events)):
                yield public
        if rest.strip():
            yield event.public(rest)
    except httpx.TransportError as error:
        log.error("the engine of %s broke off its answer: %s", public_name, error)
        yield error_event(EngineFailed(f"the engine of {public_name!r} broke off; send the request again"))
    except ValueError as error:
        log.error("the engine of %s sent an event that is not JSON: %s", public_name, error)
        yield error_event(EngineFailed(f"the engine of {public_name!r} sent an event that is not JSON"))


def error_event(error: BitmillError) -> bytes:
    return DATA + b" " + orjson.dumps({"error": error.to_dict()}) + EVENT_END


@dataclass(frozen=True, slots=True)
class _Event:
    """How the events of one stream are made public."""

    public_name: str
    observe: Observer
    hide_usage: bool

    def public(self, event: bytes) -> bytes:
        """The event with its end; nothing where it only told the hidden usage."""
        lines = [line for line in map(self._line, event.split(b"\n")) if line is not None]
        return b"\n".join(lines) + EVENT_END if lines else b""

    def _line(self, line: bytes) -> bytes | None:
        data = line.removeprefix(DATA).strip()
        if not line.startswith(DATA) or data == DONE:
            return line
        value = _renamed(data, self.public_name, self.observe)
        if self.hide_usage and "usage" in value:
            if not value.get("choices"):
                return None
            del value["usage"]
        return DATA + b" " + orjson.dumps(value)


def _renamed(body: bytes, public_name: str, observe: Observer) -> dict[str, Any]:
    value = orjson.loads(body)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was expected, not {body[:100]!r}")
    if "error" in value:
        return {"error": _error_object(value, 500, public_name)}
    observe(value)
    value["model"] = public_name
    return value


def _error_object(given: Any, status: int, public_name: str) -> dict[str, Any]:
    error = given.get("error") if isinstance(given, dict) else None
    if not isinstance(error, dict):
        error = {"message": str(error or f"the engine of {public_name!r} refused the request ({status})")}
    kind = str(error.get("type") or "invalid_request_error")
    code = error.get("code")
    return {
        "message": str(error.get("message")),
        # vLLM gives the names of classes here.
        "type": "invalid_request_error" if kind in ERROR_CODES or kind.endswith("Error") else kind,
        "param": error.get("param"),
        # llama.cpp repeats the HTTP status here.
        "code": code if isinstance(code, str) else ERROR_CODES.get(kind, "invalid_request"),
    }
