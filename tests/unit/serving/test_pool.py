"""The pool, with real processes of an engine that holds no model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.domain.errors import EngineFailed, ServingUnavailable
from app.settings import Settings
from tests.fakes.engine import FakeEngine
from tests.unit.serving.scenarios import held, model, run, states, until
from workers.serving.pool import ModelPool


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path)


def test_one_load_serves_all_that_wait(settings: Settings, tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, gated=True)
    served = model(settings, "a")

    async def scenario(pool: ModelPool) -> None:
        async def request() -> int:
            async with held(pool, served) as running:
                return running.pid

        requests = [asyncio.create_task(request()) for _ in range(10)]
        await until(lambda: states(pool) == {"a": ("loading", 10)} and engine.pids())
        engine.gate.touch()
        assert set(await asyncio.gather(*requests)) == set(engine.pids())
        assert states(pool) == {"a": ("ready", 0)}

    run(settings, engine, scenario)
    assert len(engine.pids()) == 1


def test_the_least_recently_used_idle_model_is_evicted(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        for name in ("a", "b", "a", "c"):
            async with pool.lease(model(settings, name)):
                pass
        assert sorted(states(pool)) == ["a", "c"]
        assert not psutil.pid_exists(engine.pids()[1])

    run(settings.model_copy(update={"serving_max_models": 2}), engine, scenario)


def test_a_busy_model_is_not_evicted_before_its_requests_finish(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        async with held(pool, model(settings, "a")) as first:
            waiting = asyncio.create_task(held(pool, model(settings, "b")).__aenter__())
            done, _ = await asyncio.wait({waiting}, timeout=0.3)
            assert not done
            assert first.alive
        second = await waiting
        assert not first.alive
        assert second.alive

    run(settings.model_copy(update={"serving_max_models": 1}), engine, scenario)


def test_waiting_for_a_place_ends(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        async with pool.lease(model(settings, "a")):
            with pytest.raises(ServingUnavailable, match="busy"):
                await held(pool, model(settings, "b")).__aenter__()

    run(
        settings.model_copy(update={"serving_max_models": 1, "serving_queue_timeout_seconds": 0.2}),
        engine,
        scenario,
    )


def test_a_failed_load_is_told_to_all_and_tried_again(settings: Settings, engine: FakeEngine) -> None:
    engine.broken.touch()
    served = model(settings, "a")

    async def scenario(pool: ModelPool) -> None:
        requests = (held(pool, served).__aenter__() for _ in range(3))
        errors = await asyncio.gather(*requests, return_exceptions=True)
        assert {str(error) for error in errors} == {
            "the model could not be loaded: its engine exited with code 1; the serving host's log has its last lines"
        }
        assert all(isinstance(error, EngineFailed) for error in errors)
        assert len(engine.pids()) == 1
        engine.broken.unlink()
        async with held(pool, served) as running:
            assert running.alive

    run(settings, engine, scenario)


def test_a_model_that_keeps_failing_is_not_tried_without_pause(settings: Settings, engine: FakeEngine) -> None:
    engine.broken.touch()
    served = model(settings, "a")

    async def scenario(pool: ModelPool) -> None:
        for _ in range(2):
            with pytest.raises(EngineFailed):
                await held(pool, served).__aenter__()
        with pytest.raises(ServingUnavailable, match=r"failed 2 times in a row.*could not be loaded"):
            await held(pool, served).__aenter__()

    run(settings, engine, scenario)
    assert len(engine.pids()) == 2


def test_an_engine_that_does_not_answer_is_killed(settings: Settings, tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, gated=True)

    async def scenario(pool: ModelPool) -> None:
        with pytest.raises(EngineFailed, match=r"not loaded within 0\.5 seconds"):
            await held(pool, model(settings, "a")).__aenter__()
        assert states(pool) == {}

    run(settings.model_copy(update={"serving_load_timeout_seconds": 0.5}), engine, scenario)


def test_a_dead_engine_is_restarted_by_the_next_request(settings: Settings, engine: FakeEngine) -> None:
    served = model(settings, "a")

    async def scenario(pool: ModelPool) -> None:
        async with held(pool, served) as first:
            os.kill(first.pid, signal.SIGKILL)
            await until(lambda: not states(pool))
        async with held(pool, served) as second:
            assert second.alive
            assert second.pid != first.pid

    run(settings, engine, scenario)


def test_a_client_that_leaves_does_not_stop_the_load(settings: Settings, tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, gated=True)
    served = model(settings, "a")

    async def scenario(pool: ModelPool) -> None:
        leaving = asyncio.create_task(held(pool, served).__aenter__())
        staying = asyncio.create_task(held(pool, served).__aenter__())
        await until(lambda: states(pool) == {"a": ("loading", 2)})
        leaving.cancel()
        await until(lambda: states(pool) == {"a": ("loading", 1)})
        engine.gate.touch()
        assert (await staying).alive

    run(settings, engine, scenario)


def test_unload_waits_for_requests_and_frees_the_process(settings: Settings, engine: FakeEngine) -> None:
    served = model(settings, "a")

    async def scenario(pool: ModelPool) -> None:
        async with held(pool, served) as running:
            unloading = asyncio.create_task(pool.unload("a"))
            await until(lambda: states(pool) == {"a": ("stopping", 1)})
            assert running.alive
        assert await unloading
        assert not psutil.pid_exists(running.pid)
        assert states(pool) == {}
        assert not await pool.unload("a")

    run(settings, engine, scenario)


def test_unloading_a_model_that_loads_tells_those_who_wait(settings: Settings, tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path, gated=True)

    async def scenario(pool: ModelPool) -> None:
        waiting = asyncio.create_task(held(pool, model(settings, "a")).__aenter__())
        await until(engine.pids)
        assert await pool.unload("a") is not None
        with pytest.raises(EngineFailed, match="unloaded while it was loading"):
            await waiting

    run(settings.model_copy(update={"serving_queue_timeout_seconds": 0.2}), engine, scenario)


def test_close_kills_all_and_admits_nobody(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        for name in ("a", "b"):
            async with pool.lease(model(settings, name)):
                pass
        assert all(view["memory"]["resident_bytes"] > 0 for view in pool.view())
        await pool.close()
        assert [pid for pid in engine.pids() if psutil.pid_exists(pid)] == []
        with pytest.raises(ServingUnavailable, match="shutting down"):
            await held(pool, model(settings, "a")).__aenter__()

    run(settings, engine, scenario)


def test_an_engine_dies_with_its_host(settings: Settings, engine: FakeEngine) -> None:
    """Even when the host is killed and can clean up nothing."""
    code = f"""
import asyncio
from pathlib import Path
from app.domain.artifacts import ArtifactFormat
from app.settings import Settings
from tests.fakes.engine import FakeEngine, planner_for
from workers.serving.pool import ModelPool
from workers.serving.served import ServedModel

async def main():
    folder = Path({str(settings.data_folder)!r})
    engine = FakeEngine(Path({str(engine.log.parent)!r}))
    pool = ModelPool(Settings(data_dir=folder), planner=planner_for(engine, Settings(data_dir=folder)))
    async with pool.lease(ServedModel("a", folder, ArtifactFormat.GGUF)) as lease:
        print(lease.running.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    settings.data_folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        engine_process = psutil.Process(int(host.stdout.readline()))
        host.kill()
    engine_process.wait(timeout=10)
