"""Submitting, listing, cancelling and watching jobs over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.persistence.unit_of_work import Database
from tests.fakes.checkpoints import bare_checkpoint
from tests.fakes.dispatcher import RecordingDispatcher
from tests.fakes.jobs import JOBS, finish, submit
from tests.unit.api.conftest import AddWorker


@pytest.fixture(autouse=True)
def worker_and_model(add_worker: AddWorker, root: Path) -> None:
    add_worker()
    bare_checkpoint(root / "tiny")


def test_a_submitted_job_has_every_field(client: TestClient) -> None:
    job = submit(client, metadata={"team": "search"}, suffix="v2")
    assert job == {
        "object": "quantization.job",
        "id": job["id"],
        "status": "queued",
        "created_at": job["created_at"],
        "started_at": None,
        "finished_at": None,
        "model": "tiny",
        "method": {"type": "none", "dtype": "bf16"},
        "suffix": "v2",
        "quality_gate": "on",
        "progress": {"fraction": 0.0, "stage": None, "eta_seconds": None},
        "quantized_model": None,
        "reused": False,
        "quality": None,
        "contract": None,
        "contract_proof": None,
        "predicted": job["predicted"],
        "actual": None,
        "error": None,
        "attempt": 0,
        "worker": None,
        "metadata": {"team": "search"},
    }
    assert abs(job["created_at"] - time.time()) < 60


def test_the_quality_gate_can_be_opened(client: TestClient) -> None:
    assert submit(client, quality={"gate": "off"})["quality_gate"] == "off"
    refused = client.post(JOBS, json={"model": "tiny", "method": {"type": "none"}, "quality": {"gate": "ajar"}})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "quality.gate"


def test_the_queue_is_told_after_the_commit(client: TestClient, dispatcher: RecordingDispatcher) -> None:
    job = submit(client)
    assert dispatcher.sent == [(job["id"], "cpu")]
    assert client.get(f"{JOBS}/{job['id']}").json() == job


@pytest.mark.parametrize(
    ("body", "code", "param", "words"),
    [
        ({"method": {"type": "awesome"}}, "unknown_method", "method.type", ["'awesome'", "gguf"]),
        ({"method": {}}, "unknown_method", "method.type", ["missing"]),
        ({"method": {"type": "gguf", "bits": 4}}, "invalid_parameter", "method.bits", ["'bits'", "quantization"]),
        (
            {"method": {"type": "gguf", "quantization": "Q9"}},
            "invalid_parameter",
            "method.quantization",
            ["Q9", "Q4_K_M"],
        ),
        ({"model": "nothing-here"}, "source_not_found", "model", ["nothing-here", "BITMILL_SOURCE_ROOTS"]),
        ({"model": "demo/none"}, "source_not_found", "model", ["demo/smollm2-135m-instruct"]),
        ({"model": "../outside"}, "path_outside_roots", "model", ["../outside", "BITMILL_SOURCE_ROOTS"]),
        ({"model": "/etc"}, "path_outside_roots", "model", ["/etc"]),
        ({"model": ""}, "invalid_parameter", "model", ["model"]),
        ({"suffix": "no spaces"}, "invalid_parameter", "suffix", ["no spaces"]),
        ({"surprise": 1}, "invalid_parameter", "surprise", ["surprise"]),
        ({"metadata": {"k": "v" * 513}}, "invalid_parameter", "metadata.k", ["512"]),
    ],
)
def test_bad_input_is_an_error_that_names_it(
    client: TestClient, body: dict[str, Any], code: str, param: str, words: list[str]
) -> None:
    answer = client.post(JOBS, json={"model": "tiny", "method": {"type": "none"}} | body)
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert all(word in error["message"] for word in words), error["message"]
    assert client.get(JOBS).json()["data"] == []


def test_a_body_that_is_no_json_is_refused(client: TestClient) -> None:
    answer = client.post(JOBS, content=b"{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_a_pickle_checkpoint_is_refused_before_queueing(client: TestClient, root: Path) -> None:
    bare_checkpoint(root / "pickled")
    (root / "pickled" / "model.safetensors").rename(root / "pickled" / "pytorch_model.bin")
    answer = client.post(JOBS, json={"model": "pickled", "method": {"type": "none"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "pickle_checkpoint")


def test_a_truncated_checkpoint_is_refused_before_queueing(client: TestClient, root: Path) -> None:
    weights = bare_checkpoint(root / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    answer = client.post(JOBS, json={"model": "cut", "method": {"type": "none"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "corrupt_checkpoint")


def test_an_architecture_without_converter_is_refused_before_queueing(client: TestClient, root: Path) -> None:
    bare_checkpoint(root / "bert", architecture="BertModel")
    answer = client.post(JOBS, json={"model": "bert", "method": {"type": "gguf"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_architecture")
    assert "BITMILL_GGUF_CONVERTER" in answer.json()["error"]["message"]


def test_a_converter_of_the_installations_own_lets_any_architecture_through(client: TestClient, root: Path) -> None:
    service = client.app.state.jobs  # type: ignore[attr-defined]  # TestClient's app is a FastAPI
    service.settings = service.settings.model_copy(update={"gguf_converter": "convert {source} {target}"})
    bare_checkpoint(root / "bert", architecture="BertModel")
    answer = client.post(JOBS, json={"model": "bert", "method": {"type": "gguf"}})
    assert (answer.status_code, answer.json()["status"]) == (201, "queued")


def test_a_full_disk_is_said_before_queueing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    service = client.app.state.jobs  # type: ignore[attr-defined]  # TestClient's app is a FastAPI
    service.settings = service.settings.model_copy(update={"min_free_disk_bytes": 10**18})
    answer = client.post(JOBS, json={"model": "tiny", "method": {"type": "none"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")


def test_a_job_is_accepted_before_its_worker_is_there(client: TestClient, add_worker: AddWorker) -> None:
    add_worker(heartbeat_at=time.time() - 3600, stopped_at=time.time() - 3600)
    answer = client.post(JOBS, json={"model": "tiny", "method": {"type": "none"}})
    assert (answer.status_code, answer.json()["status"]) == (201, "queued")
    waiting = {"fraction": 0.0, "stage": "waiting for a worker with the method none", "eta_seconds": None}
    assert answer.json()["progress"] == waiting
    assert client.get(JOBS).json()["data"][0]["progress"] == waiting
    add_worker(id="here-2", methods={"gguf": None, "none": "no module named 'torch'"})
    assert client.get(f"{JOBS}/{answer.json()['id']}").json()["progress"] == waiting
    add_worker(id="here-3")
    assert client.get(f"{JOBS}/{answer.json()['id']}").json()["progress"]["stage"] is None


def test_a_job_for_a_gpu_waits_for_a_worker_that_has_one(client: TestClient, add_worker: AddWorker) -> None:
    add_worker(heartbeat_at=time.time() - 3600)
    asked = {"model": "tiny", "method": {"type": "none"}, "contract": {"max_kl_divergence": 1.0, "device": "gpu"}}
    answer = client.post(JOBS, json=asked)
    assert answer.status_code == 201, answer.text
    assert answer.json()["progress"]["stage"] == "waiting for a worker with a GPU and the method none"


def test_a_method_that_no_worker_has_is_a_conflict_with_its_reason(client: TestClient, add_worker: AddWorker) -> None:
    add_worker(methods={"none": None, "gguf": "No module named 'llama_cpp'"})
    answer = client.post(JOBS, json={"model": "tiny", "method": {"type": "gguf"}})
    # The architecture and the files are fine; only the worker is not.
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "method_unavailable")
    assert "llama_cpp" in answer.json()["error"]["message"]


def test_methods_say_what_they_are_and_whether_they_can_run(client: TestClient, add_worker: AddWorker) -> None:
    add_worker(methods={"none": None, "bitsandbytes": None, "gguf": "install llama-cpp-python"})
    methods = {method["id"]: method for method in client.get("/v1/quantization/methods").json()["data"]}
    assert methods["none"]["available"] is True
    assert methods["none"]["unavailable_reason"] is None
    assert methods["none"]["parameters"]["properties"]["dtype"]["enum"] == ["fp32", "fp16", "bf16"]
    assert methods["gguf"]["available"] is False
    assert methods["gguf"]["unavailable_reason"] == "install llama-cpp-python"


def test_jobs_are_listed_newest_first_in_pages(client: TestClient) -> None:
    ids = [submit(client)["id"] for _ in range(3)]
    page = client.get(JOBS, params={"limit": 2}).json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([ids[2], ids[1]], True)
    rest = client.get(JOBS, params={"limit": 2, "after": ids[1]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == ([ids[0]], False)


def test_jobs_are_filtered_by_status(client: TestClient) -> None:
    job = submit(client)
    assert client.get(JOBS, params={"status": "queued"}).json()["data"] == [job]
    assert client.get(JOBS, params={"status": "failed"}).json()["data"] == []
    assert client.get(JOBS, params={"status": "odd"}).status_code == 400


def test_a_queued_job_can_be_cancelled_and_stays_cancelled(client: TestClient) -> None:
    job = submit(client)
    for _ in range(2):
        answer = client.post(f"{JOBS}/{job['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


def test_an_ended_job_cannot_be_cancelled(client: TestClient, sqlite_database: Database) -> None:
    job = submit(client)
    finish(sqlite_database, job["id"])
    answer = client.post(f"{JOBS}/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "illegal_transition")


def test_an_unknown_job_is_not_found(client: TestClient) -> None:
    for path in ("", "/events", "/events?stream=true"):
        answer = client.get(f"{JOBS}/qjob-none{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")


def test_a_job_says_what_it_is_expected_to_take(client: TestClient) -> None:
    predicted = submit(client)["predicted"]
    assert predicted["weights_bytes"] == 20  # six and four values of 16 bits
    assert predicted["peak_memory_bytes"] > 100 * 1024**2
    assert predicted["seconds"] > 0
    assert predicted["seconds_basis"]


def test_a_job_that_searches_keeps_its_contract(client: TestClient) -> None:
    job = submit(client, method={"type": "auto"}, contract={"max_kl_divergence": 0.05, "max_size_bytes": 1000})
    assert job["method"] == {"type": "auto", "candidates": []}
    assert job["contract"]["max_kl_divergence"] == 0.05
    assert job["contract"]["device"] == "auto"
    assert job["contract_proof"] is None


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({"method": {"type": "auto"}}, "contract", "max_kl_divergence"),
        ({"method": {"type": "auto"}, "contract": {}}, "contract", "at least one term"),
        ({"method": {"type": "auto"}, "contract": {"max_taste": 1}}, "contract.max_taste", "max_taste"),
        ({"method": {"type": "auto"}, "contract": {"max_kl_divergence": 0}}, "contract.max_kl_divergence", "0"),
        ({"method": {"type": "auto", "bits": 4}, "contract": {"max_kl_divergence": 1}}, "method.bits", "candidates"),
        (
            {
                "method": {"type": "auto", "candidates": [{"type": "gptq", "bits": 5}]},
                "contract": {"max_size_bytes": 1},
            },
            "method.candidates.0.bits",
            "5",
        ),
        ({"contract": {"max_size_bytes": 1, "device": "gpu"}}, "contract.device", "gpu"),
    ],
)
def test_a_contract_that_cannot_be_read_is_named(
    client: TestClient, body: dict[str, Any], param: str, word: str
) -> None:
    answer = client.post(JOBS, json={"model": "tiny", "method": {"type": "none"}} | body)
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert word in error["message"]
