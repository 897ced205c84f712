"""Models, workers, health, metrics, keys and unknown paths."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.main import create_app
from app.persistence.artifacts import ArtifactRepository
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.dispatcher import RecordingDispatcher
from tests.unit.api.conftest import AddWorker

NAME = "org/model:gguf-Q4_K_M"


def add_artifact(database: Database, settings: Settings, name: str = NAME, **values: Any) -> Path:
    defaults: dict[str, Any] = {
        "id": "artifact-1", "name": name, "kind": ArtifactKind.QUANTIZED, "format": ArtifactFormat.GGUF,
        "path": "artifact-1", "source": "org/model", "source_fingerprint": "f" * 64, "key": "k" * 64,
        "method": {"type": "gguf", "quantization": "Q4_K_M"}, "suffix": None, "versions": {}, "size_bytes": 5,
        "parameter_count": 10, "bits_per_weight": 4.0, "tensor_types": {"Q4_K": 1}, "manifest_sha256": "m" * 64,
        "quality": None, "seconds": 1.0, "peak_memory_bytes": 1, "job_id": None, "created_at": time.time(),
    }  # fmt: skip
    row = ArtifactRow(**(defaults | values))
    folder = settings.artifacts_folder / row.path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.gguf").write_bytes(b"12345")
    with database.transaction() as session:
        ArtifactRepository(session).add(row)
    return folder


@pytest.mark.parametrize("path", [f"/v1/models/{NAME}", "/v1/models/org%2Fmodel%3Agguf-Q4_K_M"])
def test_a_model_is_found_by_its_name_escaped_or_not(
    client: TestClient, sqlite_database: Database, api_settings: Settings, path: str
) -> None:
    add_artifact(sqlite_database, api_settings)
    model = client.get(path).json()
    assert (model["id"], model["object"], model["owned_by"]) == (NAME, "model", "bitmill")
    assert model["bitmill"]["sha256"] == "m" * 64
    assert client.get("/v1/models").json()["data"] == [model]


def test_a_deleted_model_is_gone_with_its_files(
    client: TestClient, sqlite_database: Database, api_settings: Settings
) -> None:
    folder = add_artifact(sqlite_database, api_settings)
    assert client.delete(f"/v1/models/{NAME}").json() == {"id": NAME, "object": "model", "deleted": True}
    assert not folder.exists()
    answer = client.get(f"/v1/models/{NAME}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_the_users_own_folder_is_never_deleted(
    client: TestClient, sqlite_database: Database, api_settings: Settings, root: Path
) -> None:
    own = root / "mine"
    own.mkdir()
    add_artifact(sqlite_database, api_settings, name="mine", kind=ArtifactKind.BASE, path=str(own))
    assert client.delete("/v1/models/mine").status_code == 200
    assert own.exists()


def test_chat_with_an_unknown_model_is_not_found(client: TestClient) -> None:
    body = {"model": "nobody", "messages": [{"role": "user", "content": "hi"}]}
    answer = client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_missing_serving_host_is_said(client: TestClient, sqlite_database: Database, api_settings: Settings) -> None:
    add_artifact(sqlite_database, api_settings)
    answer = client.post("/v1/completions", json={"model": NAME, "prompt": "hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "serving_unavailable")


def test_workers_are_shown_while_they_live(client: TestClient, add_worker: AddWorker) -> None:
    add_worker()
    add_worker(id="gone-2", stopped_at=time.time())
    workers = client.get("/v1/workers").json()["data"]
    assert [worker["id"] for worker in workers] == ["here-1"]
    assert workers[0]["hardware"]["cores"] == 2


def test_health(client: TestClient, add_worker: AddWorker) -> None:
    assert client.get("/livez").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok", "database": "ok", "workers": 0}
    add_worker()
    assert client.get("/readyz").json()["workers"] == 1


def test_a_database_that_is_gone_makes_the_api_unready(settings: Settings) -> None:
    url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    app = create_app(settings.model_copy(update={"database_url": url}), dispatcher=RecordingDispatcher())
    with TestClient(app) as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503
        answer = client.get("/v1/models")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "database_unavailable"
        # Processes go on counting, and say what is wrong.
        text = client.get("/metrics").text
        assert "bitmill_database_up 0.0" in text
        assert 'route="/v1/models",status="503"' in text


def test_metrics_count_requests_by_route(client: TestClient, add_worker: AddWorker) -> None:
    add_worker()
    client.get("/v1/quantization/jobs/qjob-none")
    text = client.get("/metrics").text
    line = 'bitmill_http_requests_total{method="GET",route="/v1/quantization/jobs/{job_id}",status="404"} 1.0'
    assert line in text
    assert 'bitmill_jobs{state="queued"} 0.0' in text
    assert "bitmill_database_up 1.0" in text
    assert 'bitmill_workers{queue="cpu"} 1.0' in text


def test_unknown_paths_and_methods_have_error_objects(client: TestClient) -> None:
    for answer, status in ((client.get("/v1/nothing"), 404), (client.put("/v1/models"), 405)):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_keys_guard_v1_and_nothing_else(api_settings: Settings, sqlite_database: Database) -> None:
    guarded = api_settings.model_copy(update={"api_keys": ("first", "second")})
    with TestClient(create_app(guarded, dispatcher=RecordingDispatcher())) as client:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "second"}):
            answer = client.get("/v1/models", headers=header)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.get("/v1/models", headers={"authorization": "Bearer second"}).status_code == 200
        assert client.get("/livez").status_code == 200
        assert client.get("/metrics").status_code == 200
