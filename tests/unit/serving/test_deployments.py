"""The routes for deployments and engines, on the host and on the API before it, and models on other servers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.domain.serving import DeploymentOptions
from app.main import create_app
from app.persistence.schema import migrate
from app.persistence.unit_of_work import Database
from app.serving_client.client import ServingClient
from app.settings import RemoteServer, Settings
from tests.fakes.dispatcher import RecordingDispatcher
from tests.fakes.engine import FakeEngine, planner_for
from tests.unit.serving.conftest import MODEL, add_model, served
from tests.unit.serving.test_host import CHAT, body, error_of, post, until
from workers.serving.host import create_host
from workers.serving.models import ModelDirectory
from workers.serving.planning import Plan
from workers.serving.pool import ModelPool
from workers.serving.served import ServedModel


def deploy(base_url: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{base_url}/v1/deployments", json={"model": MODEL, **options}, timeout=30)


def listed(base_url: str) -> dict[str, dict[str, Any]]:
    data = httpx.get(f"{base_url}/v1/deployments").json()["data"]
    return {view["model"]: view for view in data}


def test_a_model_is_loaded_with_its_options(base_url: str, fake_engine: FakeEngine) -> None:
    answer = deploy(base_url, context_length=128, slots=3, pinned=True, keep_alive="10m")
    assert answer.status_code == 201
    view = answer.json()
    assert (view["state"], view["context_length"], view["slots"]) == ("ready", 128, 3)
    assert (view["pinned"], view["keep_alive_seconds"]) == (True, 600)
    assert view["load_seconds"] > 0
    assert httpx.get(f"{base_url}/v1/deployments/{MODEL}").json()["pid"] == view["pid"]


def test_waiting_is_not_necessary(base_url: str) -> None:
    answer = deploy(base_url, wait=False)
    assert answer.status_code == 202
    until(lambda: listed(base_url)[MODEL]["state"] == "ready")


def test_options_are_kept_while_a_model_is_not_loaded(base_url: str, pool: ModelPool) -> None:
    deploy(base_url, context_length=128, keep_alive=0)
    until(lambda: listed(base_url)[MODEL]["state"] == "unloaded")
    asleep = listed(base_url)[MODEL]
    assert (asleep["context_length"], asleep["in_flight"], asleep["pid"]) == (128, 0, None)
    post(base_url, keep_alive=60)
    awake = listed(base_url)[MODEL]
    assert awake["context_length"] == 128
    assert set(awake) == set(asleep), "dashboards find the same fields in both"


def test_deleting_a_deployment_forgets_its_options(base_url: str) -> None:
    pid = deploy(base_url, context_length=128).json()["pid"]
    resident = psutil.Process(pid).memory_info().rss
    deleted = httpx.delete(f"{base_url}/v1/deployments/{MODEL}").json()
    assert deleted["deleted"]
    assert deleted["freed_bytes"] == pytest.approx(resident, rel=0.2)
    assert not psutil.pid_exists(pid)
    assert listed(base_url) == {}
    post(base_url)
    assert listed(base_url)[MODEL]["context_length"] == 4096


def test_a_request_during_an_unload_does_not_bring_the_options_back(
    base_url: str, pool: ModelPool, tmp_path: Path
) -> None:
    deploy(base_url, context_length=128, pinned=True)
    gate = tmp_path / "gate"
    with ThreadPoolExecutor(3) as clients:
        busy = clients.submit(post, base_url, user=str(gate))
        until(lambda: pool.view()[0]["slots_in_use"] == 1)
        deleted = clients.submit(httpx.delete, f"{base_url}/v1/deployments/{MODEL}", timeout=30)
        until(lambda: pool.view()[0]["state"] == "stopping")
        late = clients.submit(post, base_url)
        until(lambda: len(pool._changed._waiters) == 2)  # it has looked its model up, and waits as the unload does
        gate.touch()
        assert [each.result().status_code for each in (busy, deleted, late)] == [200, 200, 200]
    view = listed(base_url)[MODEL]
    assert (view["context_length"], view["pinned"]) == (4096, False)


def test_a_damaged_pinned_model_does_not_keep_others_from_loading(
    settings: Settings, sqlite_database: Database, fake_engine: FakeEngine
) -> None:
    plan = planner_for(fake_engine, settings)

    def stumble(model: ServedModel) -> Plan:
        if model.name == "org/a":
            raise OSError("the disk is gone")
        return plan(model)

    models = ModelDirectory(sqlite_database, settings)
    for name in ("org/a", "org/b"):
        add_model(sqlite_database, settings, name)
        models.keep(name, DeploymentOptions(pinned=True))
    with served(create_host(settings, pool=ModelPool(settings, planner=stumble))) as url:
        until(lambda: listed(url)["org/b"]["state"] == "ready")


def test_a_model_that_cannot_load_says_why(base_url: str, fake_engine: FakeEngine) -> None:
    fake_engine.broken.touch()
    refused = deploy(base_url)
    assert refused.status_code == 502
    assert error_of(refused)["code"] == "engine_failed"
    view = listed(base_url)[MODEL]
    assert view["state"] == "failed"
    assert "exited with code 1" in view["error"]


@pytest.mark.parametrize(
    ("options", "status", "param"),
    [
        ({"context_length": 1}, 400, "context_length"),
        ({"speed": 9}, 400, "speed"),
        ({"dtype": "float16"}, 400, "dtype"),  # which the fake engine does not take
        ({"keep_alive": "soon"}, 400, "keep_alive"),
        ({"model": "org/other"}, 404, "model"),
        ({"remote": {"server": "nowhere", "model": "m"}}, 400, "remote.server"),
    ],
)
def test_what_cannot_be_is_refused_and_not_kept(
    base_url: str, options: dict[str, Any], status: int, param: str
) -> None:
    refused = deploy(base_url, **options)
    assert (refused.status_code, error_of(refused)["param"]) == (status, param)
    assert listed(base_url) == {}


def test_pinned_models_are_loaded_when_the_host_starts(
    settings: Settings, sqlite_database: Database, fake_engine: FakeEngine
) -> None:
    add_model(sqlite_database, settings, MODEL)
    for _ in range(2):
        pool = ModelPool(settings, planner=planner_for(fake_engine, settings))
        with served(create_host(settings, pool=pool)) as url:
            if not fake_engine.pids():
                deploy(url, pinned=True)
            until(lambda url=url: listed(url)[MODEL]["state"] == "ready")
    assert len(fake_engine.pids()) == 2


def test_engines_are_listed_with_what_they_need(base_url: str) -> None:
    views = {view["id"]: view for view in httpx.get(f"{base_url}/v1/engines").json()["data"]}
    assert views["llama_cpp"]["available"]
    assert views["transformers"]["version"]
    assert not views["vllm"]["available"]
    assert "bitmill engines install vllm" in views["vllm"]["problem"]


def test_requests_reach_the_other_server(
    settings: Settings, host_url: str, sqlite_database: Database, tmp_path: Path
) -> None:
    near = create_app(settings, dispatcher=RecordingDispatcher(), serving=ServingClient(host_url))
    with served(near) as near_url:
        server = RemoteServer(url=f"{near_url}/v1", api_key=None)
        far = settings.model_copy(update={"data_dir": tmp_path / "far", "remotes": {"cluster": server}})
        migrate(far.database)
        with (
            served(create_host(far)) as host,
            served(create_app(far, dispatcher=RecordingDispatcher(), serving=ServingClient(host))) as url,
        ):
            remote = {"server": "cluster", "model": MODEL}
            answer = httpx.post(f"{url}/v1/deployments", json={"model": "far/m", "remote": remote}, timeout=30)
            assert answer.status_code == 201, answer.text
            assert answer.json()["engine"] == "remote"
            chat = httpx.post(url + CHAT, json=body() | {"model": "far/m"}, timeout=30)
            assert (chat.status_code, chat.json()["model"]) == (200, "far/m")
            ids = [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]]
            assert ids == ["far/m"]
            missing = {"server": "cluster", "model": "org/none"}
            refused = httpx.post(f"{url}/v1/deployments", json={"model": "x", "remote": missing}, timeout=30)
            assert f"it has {MODEL}" in error_of(refused)["message"]
