"""A request on its way to the engine, and the answer on its way back."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
from fastapi.responses import Response

from app.domain.errors import BitmillError, EngineFailed, InvalidParameter
from app.domain.serving import parse_keep_alive
from app.settings import Settings
from app.streaming import RelayResponse
from workers.serving.connection import EngineConnection, broken
from workers.serving.contract.call import Call, parse_call
from workers.serving.deadline import Deadline
from workers.serving.dialects.base import Upstream
from workers.serving.dialects.registry import load_dialect
from workers.serving.lease import Lease
from workers.serving.metrics import Observation
from workers.serving.pool import ModelPool
from workers.serving.served import ServedModel
from workers.serving.wire import error_event, public_answer, public_error, public_events

log = logging.getLogger(__name__)

# How long after its deadline a stream may take to say that it is over: a client that reads nothing holds a slot.
LAST_WORDS_SECONDS = 2.0
KEY_REFUSED = (401, 403)
STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


def take_keep_alive(body: dict[str, Any]) -> float | None:
    """Removes the host's own field from the body. Raises InvalidParameter."""
    given = body.pop("keep_alive", None)
    try:
        return None if given is None else parse_keep_alive(given)
    except ValueError as error:
        raise InvalidParameter(f"`keep_alive`: {error}", param="keep_alive") from error


class Forwarder:
    """Everything a request needs on its way."""

    def __init__(self, pool: ModelPool, transport: httpx.AsyncBaseTransport, settings: Settings) -> None:
        self.pool = pool
        self.transport = transport
        self.settings = settings

    async def forward(self, model: ServedModel, path: str, body: dict[str, Any]) -> Response:
        """The engine's answer under the model's public name. Raises BitmillError."""
        try:
            return await self._forward(model, path, body)
        except BitmillError as error:
            self.pool.metrics.refused(model.public_name, error.code)
            raise

    async def _forward(self, model: ServedModel, path: str, body: dict[str, Any]) -> Response:
        keep_alive = take_keep_alive(body)
        call = parse_call(path, body)
        came = time.monotonic()
        async with AsyncExitStack() as stack:
            lease = await stack.enter_async_context(self.pool.lease(model, keep_alive=keep_alive))
            observation = self._observe(model, streamed=call.streams, started=came)
            stack.push(observation.left)
            deadline = Deadline(self.settings, lease.vitals.timed_out)
            stack.callback(lease.on_failure(deadline.fail))
            upstream = await self._ask(lease, call, model, deadline)
            stack.push_async_callback(upstream.aclose)
            if upstream.status_code >= 400 or not _is_stream(upstream):
                return await self._whole(upstream, model.public_name, observation, deadline)
            stack.callback(observation.end)
            chunks = await _begun(upstream.aiter_raw(), deadline, model.public_name)
            hidden = not _asks_for_usage(body)
            events = _until(deadline, public_events(chunks, model.public_name, observation, hide_usage=hidden))
            # The lease and the connection now belong to the answer, which returns them when it ends.
            owned = stack.pop_all()
            return RelayResponse(
                events,
                owned.aclose,
                status_code=upstream.status_code,
                headers=STREAM_HEADERS,
                until=deadline.total + LAST_WORDS_SECONDS,
            )

    def _observe(self, model: ServedModel, *, streamed: bool, started: float) -> Observation:
        engine = self.pool.engine_of(model.name)
        return Observation(self.pool.metrics, model.public_name, engine, streamed=streamed, started=started)

    async def _ask(self, lease: Lease, call: Call, model: ServedModel, deadline: Deadline) -> httpx.Response:
        """The answer as it begins, in OpenAI's shape whatever the engine's own is."""
        engine = self.pool.spec_of(model.name)
        engine.contract.check(call.request, engine=engine.name)
        way = EngineConnection(self.transport, lease, model)
        upstream = Upstream(lease.running, way.post, way.query, way.get)
        try:
            async with deadline.begun() if call.streams else deadline.whole():
                return await load_dialect(engine.dialect).ask(upstream, call)
        except httpx.TransportError as error:  # a dialect was reading when the engine broke off
            raise broken(model.public_name, error) from error

    async def _whole(
        self, upstream: httpx.Response, public_name: str, observation: Observation, deadline: Deadline
    ) -> Response:
        try:
            async with deadline.whole():
                answer = await upstream.aread()
        except httpx.TransportError as error:
            raise broken(public_name, error) from error
        # A key that is not taken is the host's own, whatever the client's may be.
        if upstream.status_code >= 500 or upstream.status_code in KEY_REFUSED:
            log.error("the engine of %s failed (%d): %r", public_name, upstream.status_code, answer[:1000])
            raise EngineFailed(f"the engine of {public_name!r} failed on this request; the host's log has the reason")
        if upstream.status_code >= 400:
            refusal = public_error(upstream.status_code, answer, public_name)
            later = {name: upstream.headers[name] for name in ("retry-after",) if name in upstream.headers}
            return Response(refusal, upstream.status_code, later, media_type="application/json")
        public = public_answer(answer, public_name, observation)
        observation.end()
        return Response(public, media_type="application/json")


def _asks_for_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


async def _begun(chunks: AsyncIterator[bytes], deadline: Deadline, public_name: str) -> AsyncIterator[bytes]:
    """The same chunks, of which the first is there. Raises EngineTimeout or EngineFailed."""
    try:
        async with deadline.begun():
            first = await anext(chunks, b"")
    except httpx.TransportError as error:
        raise broken(public_name, error) from error

    async def all_chunks() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return all_chunks()


async def _until(deadline: Deadline, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events up to the deadline; a stream that is not whole then says so in a last event."""
    while True:
        try:
            async with deadline.whole():
                event = await anext(events, None)
        except BitmillError as error:
            yield error_event(error)
            return
        if event is None:
            return
        yield event


def _is_stream(upstream: httpx.Response) -> bool:
    return upstream.headers.get("content-type", "").startswith("text/event-stream")
