"""A job's events, listed and streamed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.persistence.unit_of_work import Database
from tests.fakes.checkpoints import bare_checkpoint
from tests.fakes.jobs import JOBS, finish, submit
from tests.unit.api.conftest import AddWorker


@pytest.fixture(autouse=True)
def worker_and_model(add_worker: AddWorker, root: Path) -> None:
    add_worker()
    bare_checkpoint(root / "tiny")


def read_stream(client: TestClient, job_id: str, **headers: str) -> list[dict[str, Any]]:
    path = f"{JOBS}/{job_id}/events"
    with client.stream("GET", path, params={"stream": "true"}, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = list(answer.iter_lines())
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def test_stream_and_list_tell_the_same_and_the_stream_ends(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    timer = threading.Timer(0.6, finish, (sqlite_database, job["id"]))
    timer.start()
    streamed = read_stream(client, job["id"])
    timer.join()
    assert [event["type"] for event in streamed] == ["state", "state", "progress", "state"]
    assert client.get(f"{JOBS}/{job['id']}/events").json()["data"] == streamed


def test_a_client_that_reconnects_misses_nothing(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    finish(sqlite_database, job["id"])
    events = read_stream(client, job["id"])
    assert read_stream(client, job["id"], **{"Last-Event-ID": events[1]["id"]}) == events[2:]


def test_events_are_paged(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    finish(sqlite_database, job["id"])
    first = client.get(f"{JOBS}/{job['id']}/events", params={"limit": 3}).json()
    assert (len(first["data"]), first["has_more"]) == (3, True)
    rest = client.get(f"{JOBS}/{job['id']}/events", params={"after": first["data"][-1]["id"]}).json()
    assert (len(rest["data"]), rest["has_more"]) == (1, False)
