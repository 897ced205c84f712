"""One request's way to its model's engine."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx

from app.domain.errors import EngineFailed
from app.http_transport import exchange
from workers.serving.admission import Slot
from workers.serving.lease import Lease
from workers.serving.served import ServedModel
from workers.serving.vitals import Vitals

log = logging.getLogger(__name__)

# Generation may pause for long between two tokens: deadlines end it, not the socket's.
PATIENT: Final = httpx.Timeout(None, connect=10.0)


class EngineConnection:
    """Asks under the engine's name for the model. What it raises is EngineFailed."""

    def __init__(self, transport: httpx.AsyncBaseTransport, lease: Lease, model: ServedModel) -> None:
        self._transport = transport
        self._lease = lease
        self._public_name = model.public_name
        self._upstream_model = model.adapter.name if model.adapter else lease.running.upstream_model

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """Waits for a slot, which the answer then holds until it is closed."""
        slot = await self._lease.turn.slot()
        vitals = self._lease.vitals
        vitals.awaited += 1
        try:
            answer = await self.query(path, body)
        except BaseException:
            slot.release()
            raise
        finally:
            vitals.awaited -= 1
        answer.stream = _Held(answer, vitals, slot)
        return answer

    async def query(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """A question of the host's own, for which no slot is needed."""
        return await self._send("POST", path, json.dumps(_upstream_body(body, self._upstream_model)).encode())

    async def get(self, path: str) -> dict[str, Any]:
        answer = await self._send("GET", path, None)
        try:
            found: dict[str, Any] = json.loads(await answer.aread())
        except ValueError as error:
            raise EngineFailed(f"the engine of {self._public_name!r} does not say what its model can do") from error
        finally:
            await answer.aclose()
        return found

    async def _send(self, method: str, path: str, content: bytes | None) -> httpx.Response:
        self._lease.require()
        running = self._lease.running
        headers = {**running.headers, "content-type": "application/json", "accept-encoding": "identity"}
        url = running.url(path)
        try:
            return await exchange(self._transport, method, url, headers=headers, content=content, timeout=PATIENT)
        except httpx.TransportError as error:
            raise broken(self._public_name, error) from error


class _Held(httpx.AsyncByteStream):
    """The body of an answer that holds a slot, and that is a sign of the engine's life as it comes."""

    def __init__(self, answer: httpx.Response, vitals: Vitals, slot: Slot) -> None:
        assert isinstance(answer.stream, httpx.AsyncByteStream)  # noqa: S101 -- it came by an asynchronous transport
        self._stream = answer.stream
        # Refusals may come from a part of the engine that does not generate.
        self._generated = answer.is_success
        self._vitals = vitals
        self._slot = slot

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._stream)
        while (chunk := await self._next(chunks)) is not None:
            if self._generated:
                self._vitals.sign()
            yield chunk

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        self._vitals.awaited += 1
        try:
            return await anext(chunks, None)
        finally:
            self._vitals.awaited -= 1

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._slot.release()


def _upstream_body(body: dict[str, Any], upstream_model: str) -> dict[str, Any]:
    """Under the engine's name for the model. A stream always tells its usage, which the metrics count."""
    sent = {**body, "model": upstream_model}
    if body.get("stream") is True:
        sent["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return sent


def broken(public_name: str, error: httpx.TransportError) -> EngineFailed:
    log.error("no answer from the engine of %s: %r", public_name, error)
    return EngineFailed(f"the engine of {public_name!r} broke off; send the request again and it is restarted")
