"""Answers of engines that are not ours: other servers' statuses, line ends, and breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.responses import Response

from app.domain.errors import EngineFailed
from app.settings import Settings
from app.streaming import RelayResponse
from tests.fakes.engine import FakeEngine
from tests.unit.serving.scenarios import model, run, until
from workers.serving.contract.call import Call
from workers.serving.contract.responses import ResponsesRequest
from workers.serving.dialects.base import Upstream
from workers.serving.dialects.openai import OpenAiDialect
from workers.serving.forwarding import Forwarder
from workers.serving.pool import ModelPool
from workers.serving.responses import as_response
from workers.serving.wire import public_events

CHAT = "/v1/chat/completions"

Ask = Callable[[httpx.Response], Response]


@pytest.fixture
def ask(settings: Settings, tmp_path: Path) -> Ask:
    """What a client gets where the engine answers so."""

    def asked(answer: httpx.Response) -> Response:
        found: list[Response] = []

        async def scenario(pool: ModelPool) -> None:
            transport = httpx.MockTransport(lambda request: answer)
            forwarder = Forwarder(pool, transport, settings)
            body: dict[str, Any] = {"model": "a", "messages": [{"role": "user", "content": "Hi"}]}
            try:
                found.append(await forwarder.forward(model(settings, "a"), CHAT, body))
            finally:
                assert pool.view()[0]["in_flight"] == 0

        run(settings, FakeEngine(tmp_path), scenario)
        return found[0]

    return asked


@pytest.mark.parametrize("status", [401, 403])
def test_the_hosts_own_key_is_not_the_clients_business(ask: Ask, status: int) -> None:
    with pytest.raises(EngineFailed):
        ask(httpx.Response(status, json={"error": {"message": "Incorrect API key provided: sk-12***34"}}))


def test_a_busy_server_says_when_to_come_again(ask: Ask) -> None:
    answer = ask(httpx.Response(429, json={"error": {"message": "busy"}}, headers={"retry-after": "7"}))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    response = as_response(answer, ResponsesRequest(model="a", input="Hi"))
    assert (response.status_code, response.headers["retry-after"]) == (429, "7")


def test_an_engine_that_breaks_off_while_a_dialect_reads(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"{"
            raise httpx.ReadError("broke off")

    async def read(self: OpenAiDialect, upstream: Upstream, call: Call) -> httpx.Response:
        answer = await upstream.post(call.path, call.body)
        await answer.aread()
        return answer

    monkeypatch.setattr(OpenAiDialect, "ask", read)
    with pytest.raises(EngineFailed, match="broke off"):
        ask(httpx.Response(200, stream=Broken()))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_with_other_line_ends_pass_one_by_one(size: int) -> None:
    stream = b'data: {"choices": [1]}\r\n\r\ndata: {"choices": [2]}\r\n\r\ndata: [DONE]\r\n\r\n'

    async def scenario() -> None:
        left = stream

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal left
            while left:
                chunk, left = left[:size], left[size:]
                yield chunk

        events = public_events(chunks(), "a")
        first = await anext(events)
        assert size == 1000 or left, "the first event came with the last"
        text = first + b"".join([event async for event in events])
        assert text == b'data: {"choices":[1],"model":"a"}\n\ndata: {"choices":[2],"model":"a"}\n\ndata: [DONE]\n\n'

    asyncio.run(scenario())


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_a_client_that_reads_nothing_does_not_keep_its_slot(settings: Settings, tmp_path: Path, path: str) -> None:
    piece = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'

    async def pieces() -> AsyncIterator[bytes]:
        yield piece

    def answer_of(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=pieces(), headers={"content-type": "text/event-stream"})

    async def stall(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def scenario(pool: ModelPool) -> None:
        body = {"model": "a", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        answer = await Forwarder(pool, httpx.MockTransport(answer_of), small).forward(model(settings, "a"), CHAT, body)
        if path != CHAT:
            answer = as_response(answer, ResponsesRequest(model="a", input="Hi", stream=True))
        assert pool.view()[0]["in_flight"] == 1
        await asyncio.wait_for(answer({"type": "http"}, stall, stall), 10)
        assert pool.view()[0]["in_flight"] == 0

    small = settings.model_copy(update={"serving_total_timeout_seconds": 0.5})
    run(small, FakeEngine(tmp_path), scenario)


def test_an_engine_is_waited_for_only_while_somebody_reads(settings: Settings, tmp_path: Path) -> None:
    """One whose client reads nothing has nothing to do, however long that takes: it does not hang."""
    more = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
        await more.wait()

    def answer_of(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=pieces(), headers={"content-type": "text/event-stream"})

    async def scenario(pool: ModelPool) -> None:
        body = {"model": "a", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        forwarder = Forwarder(pool, httpx.MockTransport(answer_of), settings)
        answer = await forwarder.forward(model(settings, "a"), CHAT, body)
        vitals = pool.deployments[0].vitals
        assert isinstance(answer, RelayResponse)
        await anext(answer.chunks)
        assert vitals.awaited == 0
        reading = asyncio.create_task(anext(answer.chunks, None))  # type: ignore[arg-type]
        await until(lambda: vitals.awaited == 1)
        more.set()
        await reading
        await answer.close()
        assert vitals.awaited == 0

    run(settings, FakeEngine(tmp_path), scenario)
