"""A serving host reads no more of a body than the API lets through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.raw_http import Raw, serving
from workers.serving.host import create_host

LIMIT = 64 * 1024


@pytest.fixture
def host(settings: Settings, sqlite_database: Database) -> Iterator[Raw]:
    with serving(create_host(settings.model_copy(update={"max_body_bytes": LIMIT}))) as host:
        yield host


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/deployments"])
def test_a_body_that_is_too_large_is_refused(host: Raw, path: str) -> None:
    status, error = host.ask("POST", path, {"content-length": str(LIMIT + 1)}, sent=0)
    assert (status, error["code"]) == (413, "body_too_large")
    assert host.received_bytes == 0
    status, error = host.ask("POST", path, {"transfer-encoding": "chunked"}, sent=200 * LIMIT)
    assert (status, error["code"]) == (413, "body_too_large")
    assert host.received_bytes < 16 * LIMIT


def test_a_body_of_the_limit_is_read(host: Raw) -> None:
    status, error = host.ask("POST", "/v1/completions", {"content-length": str(LIMIT)}, sent=LIMIT)
    assert (status, error["code"]) == (400, "invalid_request")
