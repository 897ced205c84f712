"""The API in this process, on a real database, with a worker's row and a recording dispatcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.hardware import Hardware
from app.main import create_app
from app.persistence.tables import WorkerRow
from app.persistence.unit_of_work import Database
from app.persistence.workers import WorkerRepository
from app.settings import Settings
from tests.fakes.dispatcher import RecordingDispatcher

AddWorker = Callable[..., None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def api_settings(settings: Settings, root: Path) -> Settings:
    return settings.model_copy(update={"source_roots": (root,)})


@pytest.fixture
def dispatcher() -> RecordingDispatcher:
    return RecordingDispatcher()


@pytest.fixture
def client(api_settings: Settings, sqlite_database: Database, dispatcher: RecordingDispatcher) -> Iterator[TestClient]:
    with TestClient(create_app(api_settings, dispatcher=dispatcher), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def add_worker(sqlite_database: Database) -> AddWorker:
    def add(**values: Any) -> None:
        now = time.time()
        hardware = Hardware(hostname="here", processor="some", cores=2, memory_bytes=8 * 2**30)
        defaults: dict[str, Any] = {
            "id": "here-1", "hostname": "here", "pid": 1, "process_started_at": now, "queues": ["cpu"],
            "hardware": hardware.model_dump(mode="json"),
            "methods": {"none": None, "bitsandbytes": None, "gguf": None}, "version": "0", "started_at": now,
            "heartbeat_at": now, "stopped_at": None, "current_job_id": None,
        }  # fmt: skip
        with sqlite_database.transaction() as session:
            WorkerRepository(session).save(WorkerRow(**(defaults | values)))

    return add
