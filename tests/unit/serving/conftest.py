"""The serving host and the API before it, on real ports, with an engine that holds no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from app.cli.launch import free_port
from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.main import create_app
from app.persistence.artifacts import ArtifactRepository
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from app.serving_client.client import ServingClient
from app.settings import Settings
from tests.fakes.dispatcher import RecordingDispatcher
from tests.fakes.engine import FakeEngine, planner_for
from workers.serving.host import create_host
from workers.serving.pool import ModelPool

MODEL = "org/tiny:gguf-Q4_K_M"


@pytest.fixture
def fake_engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path)


@pytest.fixture
def serving_settings(settings: Settings) -> Settings:
    """What the host is run with; tests of its limits override this."""
    return settings


@pytest.fixture
def pool(serving_settings: Settings, fake_engine: FakeEngine) -> ModelPool:
    return ModelPool(serving_settings, planner=planner_for(fake_engine, serving_settings))


@pytest.fixture
def host_url(serving_settings: Settings, sqlite_database: Database, pool: ModelPool) -> Iterator[str]:
    add_model(sqlite_database, serving_settings, MODEL)
    with served(create_host(serving_settings, pool=pool)) as url:
        yield url


@pytest.fixture(params=["host", "api"])
def base_url(request: pytest.FixtureRequest, settings: Settings, host_url: str) -> Iterator[str]:
    """The host itself, and the API that forwards to it: clients must not see a difference."""
    if request.param == "host":
        yield host_url
        return
    app = create_app(settings, dispatcher=RecordingDispatcher(), serving=ServingClient(host_url))
    with served(app) as url:
        yield url


@pytest.fixture
def unserved_api_url(settings: Settings, sqlite_database: Database) -> Iterator[str]:
    """The API where nobody listens at the serving host's address."""
    add_model(sqlite_database, settings, MODEL)
    nowhere = f"http://127.0.0.1:{free_port()}"
    with served(create_app(settings, dispatcher=RecordingDispatcher(), serving=ServingClient(nowhere))) as url:
        yield url


def add_model(database: Database, settings: Settings, name: str) -> None:
    values: dict[str, Any] = {
        "id": f"artifact-{time.time_ns()}", "name": name, "kind": ArtifactKind.QUANTIZED,
        "format": ArtifactFormat.GGUF, "source_fingerprint": "f" * 64, "key": "k" * 64, "versions": {},
        "size_bytes": 1, "parameter_count": 1, "bits_per_weight": 1.0, "tensor_types": {},
        "manifest_sha256": "m" * 64, "created_at": time.time(),
    }  # fmt: skip
    (settings.artifacts_folder / values["id"]).mkdir(parents=True)
    with database.transaction() as session:
        ArtifactRepository(session).add(ArtifactRow(**values, path=values["id"]))


@contextmanager
def served(app: FastAPI, *, drain_seconds: int | None = None) -> Iterator[str]:
    """Runs an application on a free port, in a thread, until the block ends: requests may take `drain_seconds` more."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=drain_seconds)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            assert thread.is_alive(), "the server ended"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
