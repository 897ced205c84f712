"""The way from the host to an engine's server, and what a dialect may change on it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from workers.serving.contract.call import Call

EVENT_END = b"\n\n"
DONE = b"data: [DONE]\n\n"

Post = Callable[[str, dict[str, Any]], Awaitable[httpx.Response]]
Get = Callable[[str], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Upstream:
    """An engine's server. `key` stands for the running engine: what is known of one is forgotten with it.

    `post` is for work: it waits until it is this request's turn at one of the slots, which the answer holds until
    whoever called closes it. `query` and `get` are for what a dialect has to know. All return as soon as the answer
    begins, and raise EngineFailed; a stream is made to tell its usage.
    """

    key: object
    post: Post
    query: Post
    get: Get


class Dialect(ABC):
    @abstractmethod
    async def ask(self, upstream: Upstream, call: Call) -> httpx.Response:
        """The answer, in OpenAI's shape, which the caller closes. Raises BitmillError."""


class EventStream(httpx.AsyncByteStream):
    """Server-sent events from a generator, as the body of an answer. `close` runs even if nobody reads any."""

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]) -> None:
        self._events = events
        self._close = close

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for event in self._events:
            yield event

    async def aclose(self) -> None:
        await self._events.aclose()
        await self._close()


def streamed(events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=EventStream(events, close))


def whole(value: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json=value)


def event(value: dict[str, Any], *, name: str | None = None) -> bytes:
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + EVENT_END


async def objects(chunks: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any], None]:
    """The objects in a stream of events, without the end mark. Raises ValueError where one is not JSON."""
    rest = b""
    async for chunk in chunks:
        *events, rest = (rest + chunk).split(EVENT_END)
        for each in events:
            if (value := _data(each)) is not None:
                yield value
    if (value := _data(rest)) is not None:
        yield value


def _data(raw: bytes) -> dict[str, Any] | None:
    lines = [line.removeprefix(b"data:").strip() for line in raw.split(b"\n") if line.startswith(b"data:")]
    data = b"\n".join(lines)
    if data in (b"", b"[DONE]"):
        return None
    value = json.loads(data)
    # llama.cpp begins some streams with a null.
    return value if isinstance(value, dict) else None
