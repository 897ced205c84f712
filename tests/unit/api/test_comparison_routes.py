"""Comparisons over HTTP: what is refused, what is shown, and the report in each format."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.artifacts import ArtifactFormat, ArtifactKind, Measurement
from app.domain.comparison import METHOD_SETS
from app.domain.evaluation import Divergence, EngineFigures, EvaluationResult, QualityFigures, SpeedFigures
from app.domain.jobs import JobState
from app.persistence.artifacts import ArtifactRepository
from app.persistence.comparisons import ComparisonRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.checkpoints import bare_checkpoint
from tests.fakes.dispatcher import RecordingDispatcher
from tests.unit.api.conftest import AddWorker
from workers.comparisons import advance_comparisons

ROUTE = "/v1/comparisons"
# A name that a page must not take for markup.
NAME = "<b>tiny</b>"


@pytest.fixture(autouse=True)
def worker_and_model(add_worker: AddWorker, root: Path) -> None:
    add_worker()
    bare_checkpoint(root / "tiny")


def compare(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(ROUTE, json={"model": "tiny", "methods": [{"type": "none"}]} | body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_comparison_begins_with_its_original(client: TestClient, dispatcher: RecordingDispatcher) -> None:
    found = compare(client, samples=4)
    assert (found["object"], found["status"], found["samples"], found["device"]) == ("comparison", "running", 4, "cpu")
    original, none = found["rows"]
    assert (original["label"], original["original"], none["label"], none["status"]) == (
        "original",
        True,
        "bf16",
        "queued",
    )
    assert dispatcher.sent == [(original["evaluation_job"], "cpu")]
    assert found["progress"] == {"fraction": 0.0, "settled": 0, "rows": 2}
    assert found["verdict"] == []
    assert client.get(f"{ROUTE}/{found['id']}").json() == found
    assert [each["id"] for each in client.get(ROUTE).json()["data"]] == [found["id"]]


def test_the_seed_table_has_the_methods_of_the_fields_table(client: TestClient) -> None:
    found = compare(client, methods=[], set="seed-table")
    methods = [row["method"] for row in found["rows"]]
    assert methods == [None, *METHOD_SETS["seed-table"]]
    labels = [row["label"] for row in found["rows"]]
    assert labels[:5] == ["original", "fp16", "bf16", "bnb-int8", "bnb-nf4"]
    assert labels[7:9] == ["gguf-Q4_K_M", "fp8"]
    # No worker here has these, which is no reason to refuse the others.
    failed = {row["label"].partition("-")[0]: row["error"]["code"] for row in found["rows"] if row["error"]}
    assert failed == dict.fromkeys(("gptq", "awq", "fp8", "qat"), "method_unavailable")


@pytest.mark.parametrize(
    ("body", "param", "word"),
    [
        ({"model": "nothing-here"}, "model", "nothing-here"),
        ({"methods": []}, None, "methods"),
        ({"set": "seed-table"}, None, "either"),
        ({"methods": [], "set": "no-such-set"}, None, "no-such-set"),
        ({"methods": [{"type": "none"}, {"type": "magic"}]}, "methods.1.type", "magic"),
        ({"methods": [{"type": "none", "dtype": "fp7"}]}, "methods.0.dtype", "fp7"),
        ({"methods": [{"type": "none"}] * 33}, "methods", "32"),
        ({"dataset": "wikipedia"}, "dataset", "wikipedia"),
        ({"device": "gpu"}, "device", "gpu"),
        ({"surprise": 1}, "surprise", "surprise"),
    ],
)
def test_bad_input_is_an_error_that_names_it(
    client: TestClient, body: dict[str, Any], param: str | None, word: str
) -> None:
    answer = client.post(ROUTE, json={"model": "tiny", "methods": [{"type": "none"}]} | body)
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert word in error["message"]


def test_an_unknown_comparison_is_not_found(client: TestClient) -> None:
    for answer in (
        client.get(f"{ROUTE}/cmp-none"),
        client.post(f"{ROUTE}/cmp-none/cancel"),
        client.get(f"{ROUTE}/cmp-none/report"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "comparison_not_found")


def test_what_an_open_comparison_needs_cannot_be_deleted(client: TestClient, sqlite_database: Database) -> None:
    form = {"files": {"file": ("a.txt", b"text")}, "data": {"purpose": "evaluation"}}
    uploaded = client.post("/v1/files", **form).json()["id"]  # type: ignore[arg-type]  # both are keyword arguments
    found = compare(client, dataset=uploaded)
    end(sqlite_database, found["rows"][0]["evaluation_job"], {})
    answer = client.delete(f"/v1/files/{uploaded}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_in_use")
    assert found["id"] in answer.json()["error"]["message"]
    assert client.post(f"{ROUTE}/{found['id']}/cancel").json()["status"] == "cancelled"
    assert client.delete(f"/v1/files/{uploaded}").status_code == 200


def end(database: Database, job_id: str, result: dict[str, Any], **values: Any) -> None:
    with database.transaction() as session:
        jobs = JobRepository(session)
        attempt = jobs.claim(job_id, worker_id="here-1", lease_seconds=60)
        done = {"result": result, "fraction": 1.0} | values
        jobs.transition(job_id, JobState.SUCCEEDED, message="Ended by hand.", attempt=attempt, values=done)


def figures(divergence: float | None, rate: float) -> dict[str, Any]:
    """An evaluation's result; the original's has no divergence."""
    nats = Measurement(value=divergence or 0.0, standard_error=0.001)
    quality = QualityFigures(
        dataset="builtin", dataset_sha256="", context_length=64, scored_tokens=10,
        perplexity=Measurement(value=12.5, standard_error=0.25),
        kl_divergence=Divergence(mean=nats, median=0.1, p99=0.5, maximum=1.0) if divergence is not None else None,
    )  # fmt: skip
    speeds = tuple(
        SpeedFigures(
            requests=count, prompt_tokens=1, output_tokens=1, time_to_first_token_seconds=0.25,
            prefill_tokens_per_second=None, decode_tokens_per_second=rate * count,
        )
        for count in (1, 8)
    )  # fmt: skip
    serving = EngineFigures(
        engine="transformers", engine_version=None, device="cpu", context_length=64, load_seconds=1.0,
        resident_bytes=500_000_000, gpu_bytes=None, predicted_bytes=1, speed=speeds,
    )  # fmt: skip
    hardware = {"hostname": "here", "processor": "some", "cores": 2, "memory_bytes": 8 * 10**9, "gpus": []}
    return EvaluationResult(quality=quality, serving=serving, hardware=hardware).model_dump(mode="json")


def model_row(name: str, source: str | None, size: int) -> ArtifactRow:
    kind = ArtifactKind.QUANTIZED if source else ArtifactKind.BASE
    return ArtifactRow(
        id=name, name=name, kind=kind, format=ArtifactFormat.SAFETENSORS, path=name, source=source,
        source_fingerprint="0" * 64, key="0" * 64, method={"type": "none"} if source else None, versions={},
        size_bytes=size, parameter_count=1, bits_per_weight=16.0, tensor_types={}, manifest_sha256="0" * 64,
        created_at=time.time(),
    )  # fmt: skip


@pytest.fixture
def finished(
    client: TestClient, sqlite_database: Database, api_settings: Settings, dispatcher: RecordingDispatcher, root: Path
) -> dict[str, Any]:
    """One that measured the original and bf16, and could not do gptq."""
    bare_checkpoint(root / NAME)
    found = compare(client, model=NAME, methods=[{"type": "none"}, {"type": "gptq"}])
    with sqlite_database.transaction() as session:
        ArtifactRepository(session).add(model_row(NAME, None, 300_000_000))
        ArtifactRepository(session).add(model_row("made", NAME, 100_000_000))
    end(sqlite_database, found["rows"][0]["evaluation_job"], figures(None, 10.0))
    advance_comparisons(sqlite_database, api_settings, dispatcher)
    with sqlite_database.reading() as session:
        quantization = ComparisonRepository(session).rows(found["id"])[1].quantization_job_id
    end(sqlite_database, quantization or "", {}, quantized_model="made")
    advance_comparisons(sqlite_database, api_settings, dispatcher)
    evaluation = client.get(f"{ROUTE}/{found['id']}").json()["rows"][1]["evaluation_job"]
    end(sqlite_database, evaluation, figures(0.05, 20.0))
    advance_comparisons(sqlite_database, api_settings, dispatcher)
    view: dict[str, Any] = client.get(f"{ROUTE}/{found['id']}").json()
    return view


def test_a_finished_comparison_tells_its_figures(finished: dict[str, Any]) -> None:
    assert finished["status"] == "succeeded"
    original, made, gptq = finished["rows"]
    assert original["kl_divergence"] == {"value": 0.0, "standard_error": 0.0}
    assert made["kl_divergence"] == {"value": 0.05, "standard_error": 0.001}
    assert made["decode_tokens_per_second"] == {"1": 20.0, "8": 160.0}
    assert (made["size_bytes"], made["resident_bytes"], made["model"]) == (100_000_000, 500_000_000, "made")
    assert set(made["on_pareto_front"].values()) == set(original["on_pareto_front"].values()) == {True}
    assert gptq["error"]["code"] == "method_unavailable"
    assert gptq["on_pareto_front"]["size_and_kl_divergence"] is None
    assert "bf16 is the smallest: 100 MB on disk, 33% of the original's 300 MB." in finished["verdict"]


def test_the_report_comes_in_four_formats(client: TestClient, finished: dict[str, Any]) -> None:
    def report(format_: str, media_type: str) -> str:
        answer = client.get(f"{ROUTE}/{finished['id']}/report", params={"format": format_})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(media_type)
        return answer.text

    assert json.loads(report("json", "application/json")) == finished
    rows = list(csv.DictReader(io.StringIO(report("csv", "text/csv"))))
    assert [row["label"] for row in rows] == ["original", "bf16", "gptq-4bit-g128"]
    assert (rows[1]["kl_divergence"], rows[1]["kl_divergence_standard_error"]) == ("0.05", "0.001")
    assert rows[1]["decode_tokens_per_second_at_8"] == "160.0"
    assert "cannot run" in rows[2]["error"]
    markdown = report("markdown", "text/markdown")
    assert "| bf16 | 16.00 | 100 | 500 | 12.50 ± 0.25 | 0.0500 ± 0.0010 |" in markdown
    page = report("html", "text/html")
    assert page.count("<svg") == 3
    assert "&lt;b&gt;tiny&lt;/b&gt;" in page
    assert NAME not in page


def test_the_page_asks_nothing_of_the_network(client: TestClient, finished: dict[str, Any]) -> None:
    answer = client.get(f"{ROUTE}/{finished['id']}/report")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for word in ("http://", "https://", "<script", "src=", "@import", "url("):
        assert word not in answer.text


def test_a_report_can_be_had_before_anything_is_measured(client: TestClient) -> None:
    found = compare(client)
    for format_ in ("json", "csv", "markdown", "html"):
        assert client.get(f"{ROUTE}/{found['id']}/report", params={"format": format_}).status_code == 200
    assert client.get(f"{ROUTE}/{found['id']}/report", params={"format": "pdf"}).status_code == 400
