"""Submitting, pausing, resuming, listing and cancelling fine-tuning jobs over HTTP."""

from __future__ import annotations

import json
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

ROUTE = "/v1/fine_tuning/jobs"
TURNS = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A mill."}]
LINE = json.dumps({"messages": TURNS})


@pytest.fixture(autouse=True)
def worker_and_model(add_worker: AddWorker, root: Path) -> None:
    add_worker(methods={"lora": None, "qlora": None, "full": None, "qat": None})
    bare_checkpoint(root / "tiny")


def upload(client: TestClient, text: str, purpose: str = "fine-tune") -> str:
    answer = client.post("/v1/files", files={"file": ("train.jsonl", text.encode())}, data={"purpose": purpose})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def training_file(client: TestClient) -> str:
    return upload(client, f"{LINE}\n{LINE}\n")


def submit(client: TestClient, training_file: str, **body: Any) -> dict[str, Any]:
    answer = client.post(ROUTE, json={"model": "tiny", "training_file": training_file} | body)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def error_of(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_a_job_has_openais_shape(client: TestClient, dispatcher: RecordingDispatcher, training_file: str) -> None:
    wanted = {"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 0.5}
    job = submit(
        client, training_file, suffix="mill", seed=7, metadata={"team": "flour"},
        method={"type": "supervised", "supervised": {"hyperparameters": wanted}},
        bitmill={"adapter": "lora", "rank": 4},
    )  # fmt: skip
    assert job["id"].startswith("ftjob-")
    assert (job["object"], job["status"], job["model"]) == ("fine_tuning.job", "queued", "tiny")
    assert (job["training_file"], job["validation_file"], job["seed"]) == (training_file, None, 7)
    assert (job["fine_tuned_model"], job["trained_tokens"], job["error"]) == (None, None, None)
    assert job["hyperparameters"] == wanted
    assert job["method"]["supervised"]["hyperparameters"] == wanted
    assert (job["metadata"], job["user_provided_suffix"]) == ({"team": "flour"}, "mill")
    assert (job["bitmill"]["adapter"], job["bitmill"]["rank"]) == ("lora", 4)
    assert dispatcher.sent == [(job["id"], "cpu")]
    assert client.get(f"{ROUTE}/{job['id']}").json() == job


def test_nothing_given_means_qlora_with_everything_automatic(client: TestClient, training_file: str) -> None:
    job = submit(client, training_file)
    assert job["bitmill"]["adapter"] == "qlora"
    assert set(job["hyperparameters"].values()) == {"auto"}


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({"model": "nothing-here"}, "model", "nothing-here"),
        ({"training_file": "train.jsonl"}, "training_file", "upload"),
        ({"training_file": "file-0123456789abcdef01234567"}, "training_file", "file-0123456789abcdef01234567"),
        ({"suffix": "no spaces"}, "suffix", "no spaces"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "0"),
        ({"bitmill": {"adapter": "prefix"}}, "bitmill.adapter", "qlora"),
        ({"bitmill": {"adapter": "full", "merge": True}}, "bitmill", "merge"),
        ({"bitmill": {"adapter": "lora", "quantization": {"type": "nf4"}}}, "bitmill", "quantization"),
        ({"bitmill": {"adapter": "qat", "quantization": {"type": "int3"}}}, "bitmill", "int4"),
        ({"method": {"type": "dpo"}}, "method.type", "supervised"),
        ({"surprise": 1}, "surprise", "surprise"),
    ],
)
def test_what_is_wrong_is_named(
    client: TestClient, training_file: str, body: dict[str, Any], param: str, word: str
) -> None:
    answer = client.post(ROUTE, json={"model": "tiny", "training_file": training_file} | body)
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert (error["param"], word in error["message"]) == (param, True), error


def test_a_bad_line_is_found_before_anything_is_queued(client: TestClient, dispatcher: RecordingDispatcher) -> None:
    bad = upload(client, f"{LINE}\nnot JSON\n")
    good = upload(client, f"{LINE}\n")
    error = error_of(client.post(ROUTE, json={"model": "tiny", "training_file": bad}))
    assert (error["param"], "line 2" in error["message"]) == ("training_file", True)
    error = error_of(client.post(ROUTE, json={"model": "tiny", "training_file": good, "validation_file": bad}))
    assert (error["param"], "line 2" in error["message"]) == ("validation_file", True)
    assert dispatcher.sent == []


def test_a_file_of_another_purpose_is_refused(client: TestClient) -> None:
    other = upload(client, f"{LINE}\n", purpose="calibration")
    error = error_of(client.post(ROUTE, json={"model": "tiny", "training_file": other}))
    assert (error["param"], "fine-tune" in error["message"]) == ("training_file", True)


def test_results_are_not_uploaded(client: TestClient) -> None:
    form = {"files": {"file": ("step_metrics.csv", b"step\n")}, "data": {"purpose": "fine-tune-results"}}
    error = error_of(client.post("/v1/files", **form))
    assert (error["param"], "'fine-tune'" in error["message"]) == ("purpose", True)


def test_a_file_in_use_stays(client: TestClient, training_file: str) -> None:
    job = submit(client, training_file)
    assert error_of(client.delete(f"/v1/files/{training_file}"), 409)["code"] == "file_in_use"
    client.post(f"{ROUTE}/{job['id']}/cancel")
    assert client.delete(f"/v1/files/{training_file}").status_code == 200


def test_a_worker_without_the_libraries_is_no_help(
    client: TestClient, add_worker: AddWorker, training_file: str
) -> None:
    add_worker(methods={"lora": None, "qlora": "it needs bitsandbytes; install it"})
    error = error_of(client.post(ROUTE, json={"model": "tiny", "training_file": training_file}), 409)
    assert (error["param"], "bitsandbytes" in error["message"]) == ("bitmill.adapter", True)


def test_a_queued_job_is_paused_and_resumed(
    client: TestClient, dispatcher: RecordingDispatcher, training_file: str
) -> None:
    job = submit(client, training_file)
    assert client.post(f"{ROUTE}/{job['id']}/pause").json()["status"] == "paused"
    assert client.post(f"{ROUTE}/{job['id']}/pause").json()["status"] == "paused"
    assert client.post(f"{ROUTE}/{job['id']}/resume").json()["status"] == "queued"
    assert dispatcher.sent == [(job["id"], "cpu")] * 2
    assert error_of(client.post(f"{ROUTE}/{job['id']}/resume"), 409)["code"] == "illegal_transition"


def test_a_running_jobs_pause_is_its_workers_to_grant(
    client: TestClient, sqlite_database: Database, training_file: str
) -> None:
    job = submit(client, training_file)
    with sqlite_database.transaction() as session:
        JobRepository(session).claim(job["id"], worker_id="here-1", lease_seconds=60)
    paused = client.post(f"{ROUTE}/{job['id']}/pause").json()
    assert (paused["status"], paused["bitmill"]["progress"]["stage"]) == ("running", "pausing")
    assert error_of(client.post(f"{ROUTE}/{job['id']}/resume"), 409)
    with sqlite_database.transaction() as session:
        JobRepository(session).transition(job["id"], JobState.PAUSED, message="Saved.", attempt=1)
    assert client.get(f"{ROUTE}/{job['id']}").json()["status"] == "paused"


def test_a_paused_job_can_be_cancelled(client: TestClient, training_file: str) -> None:
    job = submit(client, training_file)
    client.post(f"{ROUTE}/{job['id']}/pause")
    assert client.post(f"{ROUTE}/{job['id']}/cancel").json()["status"] == "cancelled"
    assert error_of(client.post(f"{ROUTE}/{job['id']}/pause"), 409)["code"] == "illegal_transition"


def test_events_come_newest_first_and_in_pages(
    client: TestClient, sqlite_database: Database, training_file: str
) -> None:
    job = submit(client, training_file)
    with sqlite_database.transaction() as session:
        jobs = JobRepository(session)
        jobs.claim(job["id"], worker_id="here-1", lease_seconds=60)
        for step in (1, 2):
            data = {"step": step, "total_steps": 2, "train_loss": 1.5}
            jobs.record(job["id"], attempt=1, type_="metrics", message=f"Step {step}/2", data=data)
    first = client.get(f"{ROUTE}/{job['id']}/events", params={"limit": 2}).json()
    assert [event["type"] for event in first["data"]] == ["metrics", "metrics"]
    assert (first["data"][0]["data"]["step"], first["has_more"]) == (2, True)
    assert first["data"][0]["object"] == "fine_tuning.job.event"
    rest = client.get(f"{ROUTE}/{job['id']}/events", params={"after": first["data"][-1]["id"]}).json()
    assert [event["type"] for event in rest["data"]] == ["message", "message"]
    assert (rest["data"][-1]["message"], rest["has_more"]) == ("The job is queued.", False)
    for wrong in ("x", "9" * 30, "9" * 5000):
        assert error_of(client.get(f"{ROUTE}/{job['id']}/events", params={"after": wrong}))["param"] == "after"
    streamed = client.get(f"{ROUTE}/{job['id']}/events", params={"after": "9" * 30, "stream": "true"})
    assert error_of(streamed)["param"] == "after"


def test_checkpoints_are_listed(client: TestClient, sqlite_database: Database, training_file: str) -> None:
    job = submit(client, training_file)
    assert client.get(f"{ROUTE}/{job['id']}/checkpoints").json()["data"] == []
    with sqlite_database.transaction() as session:
        jobs = JobRepository(session)
        jobs.claim(job["id"], worker_id="here-1", lease_seconds=60)
        data = {"step": 10, "metrics": {"train_loss": 0.25}}
        jobs.record(job["id"], attempt=1, type_="checkpoint", message="Step 10 is saved.", data=data)
    (found,) = client.get(f"{ROUTE}/{job['id']}/checkpoints").json()["data"]
    assert (found["object"], found["step_number"]) == ("fine_tuning.job.checkpoint", 10)
    assert found["metrics"] == {"step": 10, "train_loss": 0.25}
    assert found["fine_tuning_job_id"] == job["id"]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "greater than or equal to 1, or 'auto'"),
        ({"hyperparameters": {"batch_size": "many"}}, "hyperparameters.batch_size", "valid integer"),
        ({"bitmill": {"target_modules": []}}, "bitmill.target_modules", "at least 1 item"),
        ({"bitmill": {"target_modules": [1]}}, "bitmill.target_modules.0", "valid string"),
        ({"bitmill": {"alpha": 1e999}}, "bitmill.alpha", "finite"),
    ],
)
def test_a_value_beside_a_word_is_named_with_what_it_may_be(
    client: TestClient, training_file: str, body: dict[str, Any], param: str, words: str
) -> None:
    content = json.dumps({"model": "tiny", "training_file": training_file} | body)
    error = error_of(client.post(ROUTE, content=content, headers={"content-type": "application/json"}))
    assert (error["param"], words in error["message"]) == (param, True), error


def test_jobs_are_found_by_metadata(client: TestClient, training_file: str) -> None:
    wanted = submit(client, training_file, metadata={"team": "flour"})
    submit(client, training_file, metadata={"team": "water"})
    found = client.get(ROUTE, params={"metadata[team]": "flour"}).json()
    assert [job["id"] for job in found["data"]] == [wanted["id"]]
    assert len(client.get(ROUTE).json()["data"]) == 2
    assert client.get("/v1/quantization/jobs").json()["data"] == []


@pytest.mark.parametrize("key", ["Mühle", 'say "flour"', "a\\b", "a.b", "a[0]"])
def test_any_key_of_metadata_is_found(client: TestClient, training_file: str, key: str) -> None:
    wanted = submit(client, training_file, metadata={key: "flour"})
    submit(client, training_file, metadata={key: "water", "other": "flour"})
    found = client.get(ROUTE, params={f"metadata[{key}]": "flour"}).json()
    assert [job["id"] for job in found["data"]] == [wanted["id"]]


def artifact(name: str, **values: Any) -> ArtifactRow:
    defaults: dict[str, Any] = {
        "id": f"artifact-{name[-6:]}", "name": name, "kind": ArtifactKind.QUANTIZED, "path": "artifact-1",
        "format": ArtifactFormat.SAFETENSORS, "source": "tiny", "source_fingerprint": "0" * 64, "key": "0" * 64,
        "versions": {}, "size_bytes": 1, "parameter_count": 1, "bits_per_weight": 4.0, "tensor_types": {},
        "manifest_sha256": "0" * 64, "created_at": time.time(),
    }  # fmt: skip
    return ArtifactRow(**(defaults | values))


def test_only_4_bits_of_bitsandbytes_are_a_base(
    client: TestClient, sqlite_database: Database, training_file: str
) -> None:
    nf4 = {"type": "bitsandbytes", "quantization": "nf4", "double_quant": True}
    with sqlite_database.transaction() as session:
        ArtifactRepository(session).add(artifact("tiny:nf4", method=nf4))
        ArtifactRepository(session).add(artifact("tiny:gptq", method={"type": "gptq"}))
    submit(client, training_file, model="tiny:nf4")
    body = {"training_file": training_file, "model": "tiny:gptq"}
    assert "'tiny'" in error_of(client.post(ROUTE, json=body))["message"]
    body = {"training_file": training_file, "model": "tiny:nf4", "bitmill": {"adapter": "full"}}
    assert error_of(client.post(ROUTE, json=body))["param"] == "model"


def test_what_was_quantized_of_a_fine_tuned_model_is_no_source(
    client: TestClient, sqlite_database: Database, add_worker: AddWorker
) -> None:
    """Its name begins as that of a fine-tuned model does."""
    add_worker()
    name, source = "ft:tiny:bitmill::01234567:bf16", "ft:tiny:bitmill::01234567"
    with sqlite_database.transaction() as session:
        ArtifactRepository(session).add(artifact(name, method={"type": "none", "dtype": "bf16"}, source=source))
    answer = client.post("/v1/quantization/jobs", json={"model": name, "method": {"type": "none"}})
    error = error_of(answer)
    assert (error["param"], repr(source) in error["message"]) == ("model", True)


def test_the_base_of_an_adapter_cannot_be_deleted(client: TestClient, sqlite_database: Database) -> None:
    with sqlite_database.transaction() as session:
        repository = ArtifactRepository(session)
        repository.add(artifact("tiny", kind=ArtifactKind.BASE, source=None, method=None, path="/nowhere"))
        adapter = artifact("ft:tiny:bitmill::01234567", kind=ArtifactKind.FINE_TUNED, format=ArtifactFormat.ADAPTER)
        adapter.method = {"type": "qlora", "base": None}
        repository.add(adapter)
    error = error_of(client.delete("/v1/models/tiny"), 409)
    assert (error["code"], "ft:tiny:bitmill::01234567" in error["message"]) == ("model_in_use", True)
    assert client.delete("/v1/models/ft:tiny:bitmill::01234567").status_code == 200
    assert client.delete("/v1/models/tiny").status_code == 200
