"""Submitting, listing and cancelling evaluations over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.domain.jobs import JobState
from app.persistence.artifacts import ArtifactRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from tests.fakes.checkpoints import bare_checkpoint
from tests.fakes.dispatcher import RecordingDispatcher
from tests.unit.api.conftest import AddWorker

ROUTE = "/v1/evaluations"


@pytest.fixture(autouse=True)
def worker_and_model(add_worker: AddWorker, root: Path) -> None:
    add_worker()
    bare_checkpoint(root / "tiny")


@pytest.fixture
def quantized(sqlite_database: Database) -> str:
    row = ArtifactRow(
        id="artifact-1", name="tiny:bf16", kind=ArtifactKind.QUANTIZED, format=ArtifactFormat.SAFETENSORS,
        path="artifact-1", source="tiny", source_fingerprint="0" * 64, key="0" * 64, method={"type": "none"},
        versions={}, size_bytes=1, parameter_count=1, bits_per_weight=16.0, tensor_types={},
        manifest_sha256="0" * 64, created_at=time.time(),
    )  # fmt: skip
    with sqlite_database.transaction() as session:
        ArtifactRepository(session).add(row)
    return row.name


def submit(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(ROUTE, json={"model": "tiny"} | body)
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


def test_an_evaluation_says_what_it_will_do(client: TestClient, dispatcher: RecordingDispatcher) -> None:
    job = submit(client, samples=4, context_length=64, metrics=["perplexity"])
    assert job["id"].startswith("eval-")
    assert (job["object"], job["status"], job["model"], job["dataset"]) == ("evaluation", "queued", "tiny", "builtin")
    assert (job["samples"], job["metrics"], job["reference"], job["result"]) == (4, ["perplexity"], None, None)
    assert dispatcher.sent == [(job["id"], "cpu")]
    assert client.get(f"{ROUTE}/{job['id']}").json() == job


def test_an_artifact_is_compared_with_its_own_source(client: TestClient, quantized: str) -> None:
    assert submit(client, model=quantized)["reference"] == "tiny"


def test_a_quantized_model_is_no_reference(client: TestClient, quantized: str) -> None:
    answer = client.post(ROUTE, json={"model": "tiny", "reference": quantized})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "reference"
    assert "'tiny'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({"model": "nothing-here"}, "model", "nothing-here"),
        ({"reference": "nothing-here"}, "reference", "nothing-here"),
        ({"dataset": "wikipedia"}, "dataset", "wikipedia"),
        ({"dataset": "file-0123456789abcdef01234567"}, "dataset", "file-0123456789abcdef01234567"),
        ({"metrics": ["taste"]}, "metrics.0", "perplexity"),
        ({"samples": 0}, "samples", "0"),
        ({"surprise": 1}, "surprise", "surprise"),
    ],
)
def test_bad_input_is_an_error_that_names_it(client: TestClient, body: dict[str, Any], param: str, word: str) -> None:
    answer = client.post(ROUTE, json={"model": "tiny"} | body)
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert error["param"] == param
    assert word in error["message"]


def test_a_file_of_another_purpose_is_refused(client: TestClient) -> None:
    form = {"files": {"file": ("a.txt", b"text")}, "data": {"purpose": "calibration"}}
    uploaded = client.post("/v1/files", **form).json()["id"]  # type: ignore[arg-type]  # both are keyword arguments
    answer = client.post(ROUTE, json={"model": "tiny", "dataset": uploaded})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dataset")
    assert "'evaluation'" in answer.json()["error"]["message"]


def test_a_data_set_is_kept_while_it_is_needed(client: TestClient) -> None:
    form = {"files": {"file": ("a.txt", b"text")}, "data": {"purpose": "evaluation"}}
    uploaded = client.post("/v1/files", **form).json()["id"]  # type: ignore[arg-type]  # both are keyword arguments
    job = submit(client, dataset=uploaded)
    answer = client.delete(f"/v1/files/{uploaded}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_in_use")
    client.post(f"{ROUTE}/{job['id']}/cancel")
    assert client.delete(f"/v1/files/{uploaded}").status_code == 200


def test_each_route_lists_its_own_kind(client: TestClient) -> None:
    evaluation = submit(client)
    method = {"type": "none"}
    quantization = client.post("/v1/quantization/jobs", json={"model": "tiny", "method": method}).json()
    assert [job["id"] for job in client.get(ROUTE).json()["data"]] == [evaluation["id"]]
    listed = client.get("/v1/quantization/jobs").json()["data"]
    assert [job["id"] for job in listed] == [quantization["id"]]
    assert client.get(f"{ROUTE}/{quantization['id']}").status_code == 404
    assert client.get(f"/v1/quantization/jobs/{evaluation['id']}").status_code == 404
    assert client.post(f"/v1/quantization/jobs/{evaluation['id']}/cancel").status_code == 404


def test_an_evaluation_can_be_cancelled_and_tells_its_events(client: TestClient) -> None:
    job = submit(client)
    assert client.post(f"{ROUTE}/{job['id']}/cancel").json()["status"] == "cancelled"
    events = client.get(f"{ROUTE}/{job['id']}/events").json()["data"]
    assert [event["data"]["status"] for event in events] == ["queued", "cancelled"]


def test_any_worker_may_take_it_whatever_methods_it_has(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    with sqlite_database.transaction() as session:
        found = JobRepository(session).unclaimed(["cpu"], [], dispatched_before=time.time() + 1)
        assert found is not None
        assert found.id == job["id"]
        assert JobRepository(session).counts() == {JobState.QUEUED: 1}


def test_an_original_stays_while_a_model_is_compared_with_it(
    client: TestClient, quantized: str, sqlite_database: Database
) -> None:
    submit(client, model=quantized)
    with sqlite_database.reading() as session:
        assert len(JobRepository(session).active_on_model("tiny")) == 1
