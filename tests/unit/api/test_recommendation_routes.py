"""Recommendations over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.domain.artifacts import ArtifactFormat, ArtifactKind, Measurement
from app.domain.evaluation import Divergence, EvaluationResult, QualityFigures
from app.domain.quantization.catalog import dump_method, parse_method
from app.persistence.artifacts import ArtifactRepository
from app.persistence.predictions import measured_speed
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from tests.fakes.checkpoints import tiny_llama
from tests.unit.api.conftest import AddWorker

ROUTE = "/v1/recommendations"


@pytest.fixture(autouse=True)
def model(root: Path) -> None:
    tiny_llama(root / "tiny")


def recommend(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(ROUTE, json={"model": "tiny"} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_worker_without_a_gpu_gets_gguf(client: TestClient, add_worker: AddWorker) -> None:
    add_worker()
    found = recommend(client)
    assert found["device"] == {"name": "auto", "class": "cpu", "memory_bytes": 8 * 2**30}
    best = found["data"][0]
    assert (best["method"]["type"], best["method"]["quantization"], best["fits"]) == ("gguf", "Q5_K_M", True)
    assert found["decided_by"] == "rule"
    assert found["rule"]["source"].startswith("https://")
    assert best["memory_bytes"] > best["weights_bytes"] > 0


def test_groups_are_chosen_to_divide_the_models_rows(client: TestClient) -> None:
    found = recommend(client, device="rtx-4090", goal="speed")
    assert found["data"][0]["method"]["group_size"] == 64


def test_what_does_not_fit_says_so_and_what_would_change_it(client: TestClient) -> None:
    found = recommend(client, device="cpu", memory_bytes=1000)
    assert {row["fits"] for row in found["data"]} == {False}
    assert "do not fit" in found["would_change"][0]


def test_without_a_worker_the_device_must_be_named(client: TestClient) -> None:
    answer = client.post(ROUTE, json={"model": "tiny"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "device")


def test_an_unknown_device_is_named_with_those_that_are_known(client: TestClient) -> None:
    error = client.post(ROUTE, json={"model": "tiny", "device": "abacus"}).json()["error"]
    assert error["param"] == "device"
    assert "abacus" in error["message"]
    assert "rtx-4090" in error["message"]


def test_measurements_of_the_model_override_the_rule(client: TestClient, sqlite_database: Database) -> None:
    measure(sqlite_database, "Q5_K_M", 0.5)
    measure(sqlite_database, "Q8_0", 0.01)
    found = recommend(client, device="cpu", contract={"max_kl_divergence": 0.1})
    assert found["decided_by"] == "measurements"
    best = found["data"][0]
    assert (best["method"]["quantization"], best["meets_contract"]) == ("Q8_0", True)
    assert best["basis"] == "measured on this model (tiny:Q8_0)"
    assert found["data"][-1]["method"]["quantization"] == "Q5_K_M"
    assert found["data"][-1]["broken_terms"]


def test_trainings_are_no_measurements_of_a_method(client: TestClient, sqlite_database: Database) -> None:
    for number, type_ in enumerate(("lora", "qat")):
        row = ArtifactRow(
            id=f"trained-{number}", name=f"ft:tiny:bitmill::0000000{number}", kind=ArtifactKind.FINE_TUNED,
            format=ArtifactFormat.SAFETENSORS, path=type_, source="tiny", source_fingerprint="0" * 64, key="0" * 64,
            method={"type": type_, "quantization": {"type": "int4", "group_size": 32}}, versions={}, size_bytes=1,
            parameter_count=1, bits_per_weight=4.0, tensor_types={}, manifest_sha256="0" * 64, seconds=3600.0,
            created_at=time.time(), evaluation=EvaluationResult().model_dump(mode="json"),
        )  # fmt: skip
        with sqlite_database.transaction() as session:
            ArtifactRepository(session).add(row)
    assert recommend(client, device="cpu")["decided_by"] == "rule"
    with sqlite_database.reading() as session:
        assert measured_speed(session, "qat") is None


def measure(database: Database, quantization: str, divergence: float) -> None:
    spec, params = parse_method({"type": "gguf", "quantization": quantization})
    nats = Divergence(
        mean=Measurement(value=divergence, standard_error=0.0), median=divergence, p99=divergence, maximum=divergence
    )
    quality = QualityFigures(
        dataset="builtin", dataset_sha256="", context_length=64, scored_tokens=10, kl_divergence=nats
    )
    row = ArtifactRow(
        id=quantization, name=f"tiny:{quantization}", kind=ArtifactKind.QUANTIZED, format=ArtifactFormat.GGUF,
        path=quantization, source="tiny", source_fingerprint="0" * 64, key="0" * 64,
        method=dump_method(spec, params), versions={}, size_bytes=1, parameter_count=1, bits_per_weight=4.0,
        tensor_types={}, manifest_sha256="0" * 64, created_at=time.time(),
        evaluation=EvaluationResult(quality=quality).model_dump(mode="json"),
    )  # fmt: skip
    with database.transaction() as session:
        ArtifactRepository(session).add(row)
