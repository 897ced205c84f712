"""A request on its way to the engine, and the answer on its way back."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import httpx
from fastapi.responses import Response

from app.domain.errors import BitmillError, EngineFailed, EngineTimeout, InvalidParameter
from app.domain.serving import parse_keep_alive
from app.http_transport import exchange
from app.settings import Settings
from app.streaming import RelayResponse
from workers.serving.contract.call import Call, parse_call
from workers.serving.deployment import ServedModel
from workers.serving.dialects.base import Upstream
from workers.serving.dialects.registry import load_dialect
from workers.serving.metrics import Observation
from workers.serving.pool import ModelPool
from workers.serving.process import Running
from workers.serving.wire import error_event, public_answer, public_error, public_events

log = logging.getLogger(__name__)

# How long after its deadline a stream may take to say that it is over: a client that reads nothing holds a slot.
LAST_WORDS_SECONDS = 2.0
KEY_REFUSED = (401, 403)
# Generation may pause for long between two tokens: the deadlines below end it, not the socket's.
PATIENT = httpx.Timeout(None, connect=10.0)
STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


def take_keep_alive(body: dict[str, Any]) -> float | None:
    """Removes the host's own field from the body. Raises InvalidParameter."""
    given = body.pop("keep_alive", None)
    try:
        return None if given is None else parse_keep_alive(given)
    except ValueError as error:
        raise InvalidParameter(f"`keep_alive`: {error}", param="keep_alive") from error


class Deadline:
    """The moment until which an answer must be whole, and until which a streamed one must begin."""

    def __init__(self, settings: Settings) -> None:
        now = asyncio.get_running_loop().time()
        self.first_token_seconds = settings.serving_first_token_timeout_seconds
        self.total_seconds = settings.serving_total_timeout_seconds
        self.first_token = now + min(self.first_token_seconds, self.total_seconds)
        self.total = now + self.total_seconds

    def no_first_token(self) -> EngineTimeout:
        return EngineTimeout(
            f"the answer did not begin within {self.first_token_seconds:g} seconds; shorten the prompt, or raise "
            f"BITMILL_SERVING_FIRST_TOKEN_TIMEOUT_SECONDS"
        )

    def not_whole(self) -> EngineTimeout:
        return EngineTimeout(
            f"the answer was not complete after {self.total_seconds:g} seconds; lower max_tokens, or raise "
            f"BITMILL_SERVING_TOTAL_TIMEOUT_SECONDS"
        )


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
            running = await stack.enter_async_context(self.pool.lease(model, keep_alive=keep_alive))
            observation = self._observe(model, streamed=call.streams, started=came)
            stack.push(observation.left)
            deadline = Deadline(self.settings)
            upstream = await self._ask(running, call, model, deadline)
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

    async def _ask(self, running: Running, call: Call, model: ServedModel, deadline: Deadline) -> httpx.Response:
        """The answer as it begins, in OpenAI's shape whatever the engine's own is."""
        engine = self.pool.spec_of(model.name)
        engine.contract.check(call.request, engine=engine.name)
        post, get = partial(self._post, running, model), partial(self._get, running, model.public_name)
        upstream = Upstream(running, post, get)
        try:
            async with asyncio.timeout_at(deadline.first_token if call.streams else deadline.total):
                return await load_dialect(engine.dialect).ask(upstream, call)
        except TimeoutError as error:
            raise (deadline.no_first_token() if call.streams else deadline.not_whole()) from error
        except httpx.TransportError as error:  # a dialect was reading when the engine broke off
            raise _broken(model.public_name, error) from error

    async def _post(self, running: Running, model: ServedModel, path: str, body: dict[str, Any]) -> httpx.Response:
        upstream_model = model.adapter.name if model.adapter else running.upstream_model
        content = json.dumps(_upstream_body(body, upstream_model)).encode()
        return await self._send(running, model.public_name, "POST", path, content)

    async def _get(self, running: Running, public_name: str, path: str) -> dict[str, Any]:
        answer = await self._send(running, public_name, "GET", path, None)
        try:
            found: dict[str, Any] = json.loads(await answer.aread())
        except ValueError as error:
            raise EngineFailed(f"the engine of {public_name!r} does not say what its model can do") from error
        finally:
            await answer.aclose()
        return found

    async def _send(
        self, running: Running, public_name: str, method: str, path: str, content: bytes | None
    ) -> httpx.Response:
        headers = {**running.headers, "content-type": "application/json", "accept-encoding": "identity"}
        url = running.url(path)
        try:
            return await exchange(self.transport, method, url, headers=headers, content=content, timeout=PATIENT)
        except httpx.TransportError as error:
            raise _broken(public_name, error) from error

    async def _whole(
        self, upstream: httpx.Response, public_name: str, observation: Observation, deadline: Deadline
    ) -> Response:
        try:
            async with asyncio.timeout_at(deadline.total):
                answer = await upstream.aread()
        except TimeoutError as error:
            raise deadline.not_whole() from error
        except httpx.TransportError as error:
            raise _broken(public_name, error) from error
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


def _upstream_body(body: dict[str, Any], upstream_model: str) -> dict[str, Any]:
    """Under the engine's name for the model. A stream always tells its usage, which the metrics count."""
    sent = {**body, "model": upstream_model}
    if body.get("stream") is True:
        sent["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return sent


def _asks_for_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


async def _begun(chunks: AsyncIterator[bytes], deadline: Deadline, public_name: str) -> AsyncIterator[bytes]:
    """The same chunks, of which the first is there. Raises EngineTimeout or EngineFailed."""
    try:
        async with asyncio.timeout_at(deadline.first_token):
            first = await anext(chunks, b"")
    except TimeoutError as error:
        raise deadline.no_first_token() from error
    except httpx.TransportError as error:
        raise _broken(public_name, error) from error

    async def all_chunks() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return all_chunks()


async def _until(deadline: Deadline, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events up to the deadline; a stream that is not whole then says so in a last event."""
    while True:
        try:
            async with asyncio.timeout_at(deadline.total):
                event = await anext(events, None)
        except TimeoutError:
            yield error_event(deadline.not_whole())
            return
        if event is None:
            return
        yield event


def _broken(public_name: str, error: httpx.TransportError) -> EngineFailed:
    log.error("no answer from the engine of %s: %r", public_name, error)
    return EngineFailed(f"the engine of {public_name!r} broke off; send the request again and it is restarted")


def _is_stream(upstream: httpx.Response) -> bool:
    return upstream.headers.get("content-type", "").startswith("text/event-stream")
