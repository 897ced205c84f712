"""Requests for adapters: each goes to its base's engine under the adapter's own name."""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import pytest

from app.persistence.artifacts import ArtifactRepository
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.adapters import adapter_row
from tests.fakes.engine import FakeEngine
from tests.unit.serving.conftest import MODEL
from tests.unit.serving.test_host import error_of, post
from workers.serving.engines.base import Told
from workers.serving.pool import ModelPool
from workers.serving.process import Running, tell

FIRST, SECOND = f"ft:{MODEL}:bitmill::00000001", f"ft:{MODEL}:bitmill::00000002"


@pytest.fixture(autouse=True)
def adapters(host_url: str, settings: Settings, sqlite_database: Database) -> dict[str, Path]:
    found = {}
    for name in (FIRST, SECOND):
        row = adapter_row(name, {"type": "qlora", "base": MODEL}, source="elsewhere")
        found[name] = settings.artifacts_folder / row.path
        found[name].mkdir(parents=True)
        with sqlite_database.transaction() as session:
            ArtifactRepository(session).add(row)
    return found


def asked(engine: FakeEngine) -> list[str]:
    return [line.split()[1] for line in engine.events("request")]


def test_base_and_adapters_share_one_engine(base_url: str, fake_engine: FakeEngine, adapters: dict[str, Path]) -> None:
    names = [FIRST, MODEL, SECOND, FIRST, MODEL]
    assert [post(base_url, model=name).json()["model"] for name in names] == names
    own = {MODEL: "engine-name"}
    assert asked(fake_engine) == [own.get(name, name) for name in names]
    assert len(fake_engine.pids()) == 1
    loaded = [f"adapter {name} {folder}" for name, folder in adapters.items()]
    assert fake_engine.events("adapter") == loaded


def test_a_loaded_adapter_is_known_without_the_database(
    host_url: str, pool: ModelPool, adapters: dict[str, Path]
) -> None:
    assert pool.loaded(FIRST) is None
    post(host_url, model=FIRST)
    known, base = pool.loaded(FIRST), pool.loaded(MODEL)
    assert known is not None
    assert base is not None
    assert (known.name, known.public_name, known.adapter and known.adapter.folders) == (
        MODEL,
        FIRST,
        (adapters[FIRST],),
    )
    assert (base.public_name, pool.loaded(SECOND)) == (MODEL, None)


def test_an_adapter_is_loaded_once_however_many_wait(host_url: str, fake_engine: FakeEngine) -> None:
    threads = [threading.Thread(target=post, args=(host_url,), kwargs={"model": FIRST}) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(asked(fake_engine)), len(fake_engine.events("adapter"))) == (5, 1)


def test_an_adapter_of_an_adapter_brings_both_to_the_base(
    host_url: str, settings: Settings, sqlite_database: Database, fake_engine: FakeEngine, adapters: dict[str, Path]
) -> None:
    """It was trained on the first one's model: alone on the base it would change another model."""
    name = f"ft:{FIRST}:bitmill::00000003"
    row = adapter_row(name, {"type": "lora", "base": None}, source=FIRST)
    folder = settings.artifacts_folder / row.path
    folder.mkdir()
    with sqlite_database.transaction() as session:
        ArtifactRepository(session).add(row)
    assert post(host_url, model=name).json()["model"] == name
    assert asked(fake_engine) == [name]
    assert fake_engine.events("adapter") == [f"adapter {name} {adapters[FIRST]} {folder}"]


def test_an_adapter_is_taken_off_and_its_base_stays(base_url: str, fake_engine: FakeEngine, pool: ModelPool) -> None:
    post(base_url, model=FIRST)
    assert httpx.get(f"{base_url}/v1/deployments/{FIRST}").json()["adapters"] == [FIRST]
    assert httpx.delete(f"{base_url}/v1/deployments/{FIRST}").json()["deleted"]
    assert fake_engine.events("unload") == [f"unload /adapters/{FIRST}"]
    assert [view["adapters"] for view in pool.view()] == [[]]
    assert post(base_url, model=FIRST).status_code == 200
    assert len(fake_engine.events("adapter")) == 2


def test_an_adapter_that_is_wanted_while_it_is_taken_off_is_there_in_the_end(
    host_url: str, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleting, go_on = threading.Event(), threading.Event()

    async def slow_tell(running: Running, told: Told) -> None:
        if told.method == "DELETE":
            deleting.set()
            await asyncio.to_thread(go_on.wait, 10)
        await tell(running, told)

    monkeypatch.setattr("workers.serving.deployment.tell", slow_tell)
    post(host_url, model=FIRST)
    with ThreadPoolExecutor() as threads:
        deleted = threads.submit(httpx.delete, f"{host_url}/v1/deployments/{FIRST}")
        assert deleting.wait(10)
        asked_again = threads.submit(post, host_url, model=FIRST)
        wait([asked_again], timeout=0.5)  # long enough for a load that overtakes
        go_on.set()
        assert (deleted.result().status_code, asked_again.result().status_code) == (200, 200)
    told = [line.split()[0] for line in fake_engine.log.read_text().splitlines()]
    assert [each for each in told if each in ("adapter", "unload")] == ["adapter", "unload", "adapter"]


def test_an_adapter_that_cannot_be_loaded_is_tried_again(
    host_url: str, adapters: dict[str, Path], fake_engine: FakeEngine
) -> None:
    shutil.rmtree(adapters[FIRST])
    failed = post(host_url, model=FIRST)
    assert (failed.status_code, "no such folder" in error_of(failed)["message"]) == (502, True)
    assert post(host_url).status_code == 200
    adapters[FIRST].mkdir()
    assert post(host_url, model=FIRST).status_code == 200


def test_an_adapter_has_no_options_of_its_own(host_url: str, fake_engine: FakeEngine) -> None:
    deployments = f"{host_url}/v1/deployments"
    refused = httpx.post(deployments, json={"model": FIRST, "slots": 2})
    assert (refused.status_code, repr(MODEL) in error_of(refused)["message"]) == (400, True)
    loaded = httpx.post(deployments, json={"model": FIRST})
    assert (loaded.status_code, loaded.json()["model"], loaded.json()["adapters"]) == (201, MODEL, [FIRST])
    httpx.post(deployments, json={"model": MODEL, "slots": 2})
    assert post(host_url, model=FIRST).status_code == 200
    assert len(fake_engine.pids()) == 2  # loaded again with other options, and the adapter with it
