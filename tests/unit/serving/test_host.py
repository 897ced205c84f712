"""Requests through the serving host, and through the API before it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.domain.errors import ServingUnavailable
from app.persistence.unit_of_work import Database
from app.serving_client.client import ServingClient
from app.settings import Settings
from tests.fakes.engine import FakeEngine, planner_for
from tests.unit.serving.conftest import MODEL, add_model, served
from workers.serving.host import create_host
from workers.serving.pool import ModelPool

CHAT = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **fields}


def post(base_url: str, path: str = CHAT, **fields: Any) -> httpx.Response:
    return httpx.post(base_url + path, json=body(**fields), timeout=30)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_an_answer_carries_the_public_name(base_url: str, fake_engine: FakeEngine) -> None:
    answer = post(base_url)
    assert answer.status_code == 200
    assert answer.json()["model"] == MODEL
    # The engine gets its own name for the model, and a connection that it need not keep.
    assert fake_engine.events("request") == ["request engine-name close"]


def test_a_connection_is_kept_where_the_engine_keeps_it(base_url: str, fake_engine: FakeEngine) -> None:
    fake_engine.keeps_connections = True
    assert post(base_url).status_code == 200
    assert fake_engine.events("request") == ["request engine-name none"]


def test_completions_are_forwarded_too(base_url: str) -> None:
    answer = httpx.post(base_url + "/v1/completions", json={"model": MODEL, "prompt": "Hi"}, timeout=30)
    assert answer.json()["model"] == MODEL


def test_each_chunk_of_a_stream_carries_the_public_name(base_url: str) -> None:
    with httpx.stream("POST", base_url + CHAT, json=body(stream=True), timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert json.loads(events[0]) == {"model": MODEL, "choices": [{"delta": {"content": "é"}}]}
    assert events[-1] == "[DONE]"


def test_a_response_is_made_of_a_chat_completion(base_url: str, fake_engine: FakeEngine) -> None:
    asked = {"model": MODEL, "input": "Hi"}
    whole = httpx.post(base_url + "/v1/responses", json=asked, timeout=30).json()
    assert (whole["object"], whole["status"], whole["model"]) == ("response", "completed", MODEL)
    assert whole["output"][0]["content"][0]["text"] == "é"
    assert whole["usage"]["total_tokens"] == 5
    lines = httpx.post(base_url + "/v1/responses", json={**asked, "stream": True}, timeout=30).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [line.removeprefix("event: ") for line in lines if line.startswith("event: ")] == [
        event["type"] for event in events
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    # The fake engine's stream ends for its length.
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "é"


def test_a_response_that_fails_says_so(base_url: str) -> None:
    wrong = httpx.post(base_url + "/v1/responses", json={"model": MODEL, "input": "Hi", "store": True}, timeout=30)
    assert (wrong.status_code, error_of(wrong)["param"]) == (400, "store")
    refused = httpx.post(base_url + "/v1/responses", json={"model": MODEL, "input": "Hi", "user": "refuse"}, timeout=30)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "context_length_exceeded")


def test_embeddings_are_forwarded(base_url: str, fake_engine: FakeEngine) -> None:
    answer = httpx.post(base_url + "/v1/embeddings", json={"model": MODEL, "input": "Hi"}, timeout=30)
    assert answer.status_code == 200
    assert len(fake_engine.events("request")) == 1


@pytest.mark.parametrize(("fields", "param"), [({"unheard_of": 1}, "unheard_of"), ({"mirostat": 1}, "mirostat")])
def test_a_field_that_the_engine_does_not_know_never_reaches_it(
    base_url: str, fake_engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    """The first is nobody's, the second is not this engine's."""
    answer = post(base_url, **fields)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert fake_engine.events("request") == []


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        ("[" * 200_000, None),
        (json.dumps(body()).replace(MODEL, "\\ud800"), "model"),
        (json.dumps(body()).replace(MODEL, "\\u0000"), "model"),
        (json.dumps(body(logit_bias={"9" * 5000: 1})), "logit_bias"),
    ],
    ids=["nested", "half a character", "zero byte", "huge token"],
)
def test_a_body_that_no_program_takes_is_the_clients_fault(base_url: str, raw: str, param: str | None) -> None:
    answer = httpx.post(base_url + CHAT, content=raw, timeout=30)
    assert answer.status_code == 400
    assert (error_of(answer)["param"] or "").partition(".")[0] == (param or "")


def test_an_unknown_model(base_url: str) -> None:
    answer = post(base_url, model="nobody/knows")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "model_not_found"
    assert error_of(answer)["param"] == "model"


@pytest.mark.parametrize(
    ("content", "param"),
    [(b"{", None), (b"[]", None), (b"{}", "model"), (b'{"model": 5}', "model"), (b'{"a": "\xff"}', None)],
)
def test_a_malformed_request(base_url: str, content: bytes, param: str | None) -> None:
    answer = httpx.post(base_url + CHAT, content=content)
    assert answer.status_code == 400
    assert error_of(answer)["type"] == "invalid_request_error"
    assert error_of(answer)["param"] == param


def test_a_refusal_of_the_engine_is_an_error_object_of_openais(base_url: str) -> None:
    answer = post(base_url, user="refuse")
    assert answer.status_code == 400
    assert error_of(answer) == {
        "message": "no", "type": "invalid_request_error", "param": None, "code": "context_length_exceeded",
    }  # fmt: skip


def test_a_failure_of_the_engine_tells_clients_no_internals(base_url: str) -> None:
    answer = post(base_url, user="fail")
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "engine_failed"
    assert "secret" not in answer.text


def test_an_engine_that_crashes_is_restarted(base_url: str, fake_engine: FakeEngine, pool: ModelPool) -> None:
    answer = post(base_url, user="crash")
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "engine_failed"
    until(lambda: not pool.view())
    assert post(base_url).status_code == 200
    assert len(fake_engine.pids()) == 2


def test_a_model_that_cannot_be_loaded(
    base_url: str, fake_engine: FakeEngine, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    fake_engine.broken.touch()
    answer = post(base_url)
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "engine_failed"
    assert str(settings.data_folder) not in answer.text
    assert "the fake engine cannot load" in caplog.text
    fake_engine.broken.unlink()
    assert post(base_url).status_code == 200


def test_a_client_that_leaves_a_stream_stops_its_generation(
    base_url: str, fake_engine: FakeEngine, tmp_path: Path, pool: ModelPool
) -> None:
    request = body(stream=True, user=str(tmp_path / "never"))
    with httpx.stream("POST", base_url + CHAT, json=request, timeout=30) as answer:
        next(answer.iter_bytes())
    until(lambda: fake_engine.events("disconnected"))
    until(lambda: pool.view()[0]["in_flight"] == 0)


def test_a_client_that_leaves_before_the_answer_frees_its_place(
    base_url: str, tmp_path: Path, pool: ModelPool, fake_engine: FakeEngine
) -> None:
    post(base_url)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(base_url + CHAT, json=body(user=str(tmp_path / "never")), timeout=0.3)
    until(lambda: pool.view()[0]["in_flight"] == 0)


def test_deployments_are_listed_and_unloaded(base_url: str, fake_engine: FakeEngine) -> None:
    assert httpx.get(f"{base_url}/v1/deployments").json() == {"object": "list", "data": []}
    post(base_url)
    (view,) = httpx.get(f"{base_url}/v1/deployments").json()["data"]
    assert (view["model"], view["engine"], view["state"]) == (MODEL, "fake", "ready")
    assert view["memory"]["resident_bytes"] > 0
    assert httpx.delete(f"{base_url}/v1/deployments/{MODEL}").json()["deleted"]
    assert not psutil.pid_exists(view["pid"])
    again = httpx.delete(f"{base_url}/v1/deployments/{MODEL}")
    assert again.status_code == 404
    assert error_of(again)["code"] == "model_not_found"


def test_a_host_that_is_not_there(unserved_api_url: str) -> None:
    answer = post(unserved_api_url)
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "serving_unavailable"
    assert "bitmill up" in error_of(answer)["message"]


def test_a_host_that_breaks_off_ends_the_stream_with_an_error() -> None:
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            yield b"data: {}\n\n"
            raise httpx.ReadError("gone")

    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Broken())

    async def chunks() -> list[bytes]:
        client = ServingClient("http://host", transport=httpx.MockTransport(respond))
        answer = await client.forward(CHAT, b"{}")
        return [chunk async for chunk in answer.chunks]

    first, last = asyncio.run(chunks())
    assert first == b"data: {}\n\n"
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "serving_unavailable"


def test_the_hosts_address_may_end_with_a_slash() -> None:
    asked: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, json={})

    async def ask() -> None:
        client = ServingClient("http://host/", transport=httpx.MockTransport(respond))
        await (await client.forward(CHAT, b"{}")).aclose()
        await client.ask("GET", "/v1/deployments")
        await client.aclose()

    asyncio.run(ask())
    assert asked == [CHAT, "/v1/deployments"]


def test_a_host_that_is_told_to_stop_does_not_wait_for_a_model_to_load(
    settings: Settings, sqlite_database: Database, tmp_path: Path
) -> None:
    engine = FakeEngine(tmp_path, gated=True)
    add_model(sqlite_database, settings, MODEL)
    host = create_host(settings, pool=ModelPool(settings, planner=planner_for(engine, settings)))

    async def load(url: str) -> None:
        client = ServingClient(url)
        try:
            await client.ask("POST", "/v1/deployments", json.dumps({"model": MODEL}).encode())
        finally:
            await client.aclose()

    with ThreadPoolExecutor() as thread:
        with served(host, drain_seconds=1) as url:
            asked = thread.submit(asyncio.run, load(url))
            until(engine.pids)
        with pytest.raises(ServingUnavailable, match="see its log"):
            asked.result()
    assert [pid for pid in engine.pids() if psutil.pid_exists(pid)] == []
