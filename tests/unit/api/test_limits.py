"""What is refused before it is read: requests without a key, bodies and heads that are too large."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from app.api.keys import OPEN
from app.main import create_app
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.dispatcher import RecordingDispatcher
from tests.fakes.raw_http import Raw, serving

KEY = "right-key"
LIMIT = 64 * 1024
CHAT = "/v1/chat/completions"
# A body that a route reads by itself, one that FastAPI reads, and one that is asked of a model's host.
ROUTES = [CHAT, "/v1/quantization/jobs", "/v1/deployments"]
UPLOAD = {"content-type": "multipart/form-data; boundary=b"}


@pytest.fixture
def app(settings: Settings, sqlite_database: Database) -> FastAPI:
    changed = settings.model_copy(update={"api_keys": (KEY, "other-key"), "max_body_bytes": LIMIT})
    return create_app(changed, dispatcher=RecordingDispatcher())


@pytest.fixture
def server(app: FastAPI) -> Iterator[Raw]:
    with serving(app) as server:
        yield server


def key(value: str = KEY) -> dict[str, str]:
    return {"authorization": f"Bearer {value}"}


def test_every_route_but_the_open_ones_asks_for_a_key(app: FastAPI, server: Raw) -> None:
    for path in sorted(OPEN.union(app.openapi()["paths"], ["/v1/nothing", "/v1", "/"])):
        status, _ = server.ask("GET", path)
        assert (status == 401) == (path not in OPEN), path


@pytest.mark.parametrize("path", [*ROUTES, "/v1/files"])
@pytest.mark.parametrize("given", [{}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, key("")])
def test_without_a_key_nothing_of_a_body_is_read(server: Raw, path: str, given: dict[str, str]) -> None:
    """The answer comes while the client has sent no more than the head."""
    status, error = server.ask("POST", path, {"content-length": "300000000", **UPLOAD, **given}, sent=0)
    assert (status, error["code"], error["param"]) == (401, "invalid_api_key", None)
    assert server.received_bytes == 0


def test_whoever_waits_to_be_told_is_not_told_to_go_on(server: Raw) -> None:
    status, _ = server.ask("POST", CHAT, {"content-length": "300000000", "expect": "100-continue"}, sent=0)
    assert status == 401


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_that_states_to_be_too_large_is_not_read(server: Raw, path: str) -> None:
    status, error = server.ask("POST", path, {**key(), "content-length": str(LIMIT + 1)}, sent=0)
    assert (status, error["code"], error["type"]) == (413, "body_too_large", "invalid_request_error")
    assert "BITMILL_MAX_BODY_BYTES" in error["message"]
    assert server.received_bytes == 0


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_in_chunks_is_read_up_to_the_limit(server: Raw, path: str) -> None:
    status, error = server.ask("POST", path, {**key(), "transfer-encoding": "chunked"}, sent=200 * LIMIT)
    assert (status, error["code"]) == (413, "body_too_large")
    assert server.received_bytes < 16 * LIMIT


@pytest.mark.parametrize("framing", ["content-length", "transfer-encoding"])
def test_a_body_of_the_limit_is_read(server: Raw, framing: str) -> None:
    """And then found to be no JSON."""
    headers = {**key("other-key"), framing: str(LIMIT) if framing == "content-length" else "chunked"}
    status, error = server.ask("POST", CHAT, headers, sent=LIMIT)
    assert (status, error["code"]) == (400, "invalid_request")


def test_an_upload_has_a_limit_of_its_own(server: Raw) -> None:
    parts = (
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nevaluation\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        + b"a" * 3 * LIMIT
        + b"\r\n--b--"
    )
    headers = {**key(), **UPLOAD, "content-length": str(len(parts))}
    status, answer = server.ask("POST", "/v1/files", headers, body=parts)
    assert status == 200, answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nhost: x\r\nlong: " + b"a" * 10_000_000,
        b"GET /livez HTTP/1.1\r\nhost: x\r\n" + b"many: a\r\n" * 1_000_000,
        b"GET /" + b"a" * 10_000_000,
        b"GET /livez HTTP/1.1\r\nhost: x\r\nlong: " + b"a" * 66_000 + b"\r\n\r\n",
    ],
    ids=["a header", "headers", "a path", "whole"],
)
def test_a_head_has_a_limit(server: Raw, head: bytes) -> None:
    status, error = server.send(head)
    assert (status, error["code"]) == (431, "headers_too_large")
    assert server.ask("GET", "/livez")[0] == 200


def test_headers_behind_a_body_in_chunks_have_one_too(server: Raw) -> None:
    start = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ntransfer-encoding: chunked\r\n\r\n"
    sent = server.send_until_closed(start.encode() + b"1\r\n{\r\n0\r\nlong: ", b"a" * 65536, limit_bytes=10_000_000)
    assert sent < 10_000_000


def test_a_usual_head_passes(server: Raw) -> None:
    headers = {**key(), "cookie": "a" * 60_000}
    assert server.ask("GET", "/v1/models", headers)[0] == 200


def test_a_connection_answers_on_after_a_refusal(server: Raw) -> None:
    with server.connect() as connection:
        for _ in range(2):
            status, _ = connection.ask("POST", CHAT, {**key(), "content-length": str(2 * LIMIT)}, sent=2 * LIMIT)
            assert status == 413
        assert connection.ask("GET", "/v1/models", key())[0] == 200


def test_refusals_are_counted(server: Raw) -> None:
    server.ask("POST", CHAT, {"content-length": "5"}, sent=5)
    metrics = server.text("/metrics")
    assert 'bitmill_http_requests_total{method="POST",route="unknown",status="401"} 1.0' in metrics


def test_without_keys_anybody_is_answered(settings: Settings, sqlite_database: Database) -> None:
    with serving(create_app(settings, dispatcher=RecordingDispatcher())) as server:
        assert server.ask("GET", "/v1/models")[0] == 200
