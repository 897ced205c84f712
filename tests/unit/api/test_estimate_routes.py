"""Estimates over HTTP, from headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.dispatcher import RecordingDispatcher
from tests.fakes.hub import FakeHub, running

ROUTE = "/v1/estimates"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("sizes") / "tiny", shards=2)


@pytest.fixture
def hub_client(settings: Settings, folder: Path, sqlite_database: Database) -> Iterator[tuple[TestClient, FakeHub]]:
    with running(FakeHub(folders={"mill/tiny": folder})) as hub:
        changed = settings.model_copy(update={"hub_endpoint": hub.address, "source_roots": (folder.parent,)})
        with TestClient(create_app(changed, dispatcher=RecordingDispatcher())) as client:
            yield client, hub


def test_a_cast_takes_what_its_parameters_take(hub_client: tuple[TestClient, FakeHub], folder: Path) -> None:
    client, _ = hub_client
    method = {"type": "none", "dtype": "fp32"}
    found = client.post(ROUTE, json={"model": "tiny", "method": method, "context_length": 512}).json()
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert found["weights_bytes"] == pytest.approx(2 * weights, rel=0.05)
    # 2 layers × 2 heads of keys and values × 16 values × 2 bytes for each token.
    assert found["memory"]["cache_bytes"] == 512 * 2 * 2 * 2 * 16 * 2
    assert found["memory"]["total_bytes"] > found["weights_bytes"]
    assert found["job"]["seconds_basis"].startswith("benchmarks")


def test_a_hub_model_needs_only_its_headers(hub_client: tuple[TestClient, FakeHub]) -> None:
    client, hub = hub_client
    method = {"type": "bitsandbytes"}
    remote = client.post(ROUTE, json={"model": "mill/tiny", "method": method})
    local = client.post(ROUTE, json={"model": "tiny", "method": method})
    assert remote.status_code == 200, remote.text
    assert remote.json()["weights_bytes"] == local.json()["weights_bytes"]
    assert "tokenizer.json" not in hub.downloads()


def test_the_cache_grows_with_requests_up_to_what_the_engine_holds(hub_client: tuple[TestClient, FakeHub]) -> None:
    client, _ = hub_client
    sizes = [
        client.post(ROUTE, json={"model": "tiny", "method": {"type": "fp8"}, "concurrency": count}).json()
        for count in (1, 4, 64)
    ]
    caches = [size["memory"]["cache_bytes"] for size in sizes]
    assert caches[1] == caches[2] == 4 * caches[0]


@pytest.mark.parametrize(
    ("model", "method", "code", "param"),
    [
        ("mill/nothing", {"type": "none"}, "source_not_found", "model"),
        ("nothing", {"type": "none"}, "source_not_found", "model"),
        ("tiny", {"type": "gguf", "quantization": "Q9"}, "invalid_parameter", "method.quantization"),
        ("tiny", {"type": "gptq"}, "incompatible_model", "method.group_size"),
    ],
)
def test_what_cannot_be_estimated_is_said(
    model: str, method: dict[str, str], code: str, param: str, hub_client: tuple[TestClient, FakeHub]
) -> None:
    client, _ = hub_client
    error = client.post(ROUTE, json={"model": model, "method": method}).json()["error"]
    assert (error["code"], error["param"]) == (code, param)
