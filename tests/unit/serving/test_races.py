"""What must not go wrong where a client leaves, a model goes, or another comes at just the wrong moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.domain.errors import EngineFailed, ServingUnavailable
from app.settings import Settings
from app.streaming import unless_disconnected
from tests.fakes.engine import FakeEngine
from tests.unit.serving.scenarios import held, model, run, states, until
from tests.unit.serving.test_residency import GIB, SmallMachine
from workers.serving.planning import Plan
from workers.serving.pool import ModelPool
from workers.serving.process import RunningEngine
from workers.serving.served import ServedModel


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path)


@pytest.fixture
def slow_death(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Engines that are killed end when this event is set, as large ones take a while to."""
    gate = asyncio.Event()
    kill = RunningEngine.kill

    async def wait_and_kill(self: RunningEngine) -> None:
        await gate.wait()
        await kill(self)

    monkeypatch.setattr(RunningEngine, "kill", wait_and_kill)
    return gate


def test_an_answer_that_was_finished_as_its_client_left_is_not_dropped() -> None:
    """It holds a slot and a connection, which only it can return."""

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "the answer"
        return "never"

    async def gone() -> dict[str, str]:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    assert asyncio.run(unless_disconnected(gone, stubborn())) == "the answer"


@pytest.mark.parametrize("steps", range(6))
def test_whoever_leaves_as_something_changes_has_left(settings: Settings, engine: FakeEngine, steps: int) -> None:
    async def scenario(pool: ModelPool) -> None:
        async with pool.lease(model(settings, "a")):
            waiting = asyncio.create_task(held(pool, model(settings, "b")).__aenter__())
            await asyncio.sleep(0.1)
            pool._notify()
            for _ in range(steps):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting}, timeout=2)
            assert waiting.cancelled()

    run(settings.model_copy(update={"serving_max_models": 1}), engine, scenario)


def test_an_eviction_goes_on_without_whoever_wanted_it(
    settings: Settings, engine: FakeEngine, slow_death: asyncio.Event
) -> None:
    async def scenario(pool: ModelPool) -> None:
        await pool.load(model(settings, "a"))
        leaving = asyncio.create_task(held(pool, model(settings, "b")).__aenter__())
        await until(lambda: states(pool)["a"][0] == "dead")
        leaving.cancel()
        await asyncio.wait({leaving})
        slow_death.set()
        async with pool.lease(model(settings, "a")):
            assert states(pool)["a"][0] == "ready"

    small = {"serving_max_models": 1, "serving_queue_timeout_seconds": 2.0}
    run(settings.model_copy(update=small), engine, scenario)


class SlowPlanner:
    """Plans for one model only when `go_on` is set. Whoever loads a model has the pool to itself meanwhile."""

    def __init__(self, pool: ModelPool, name: str) -> None:
        self.plan, self.name, self.loop = pool.planner, name, asyncio.get_running_loop()
        self.planning, self.go_on = asyncio.Event(), asyncio.Event()
        pool.planner = self

    def __call__(self, served: ServedModel) -> Plan:
        if served.name == self.name:
            self.loop.call_soon_threadsafe(self.planning.set)
            asyncio.run_coroutine_threadsafe(self.go_on.wait(), self.loop).result(10)
        return self.plan(served)


def test_requests_from_before_a_reload_do_not_bring_the_old_options_back(
    settings: Settings, engine: FakeEngine
) -> None:
    async def scenario(pool: ModelPool) -> None:
        old, new = model(settings, "a"), model(settings, "a", context_length=128)
        async with pool.lease(old):
            reload = asyncio.create_task(pool.load(new))
            await until(lambda: states(pool)["a"][0] == "stopping")
            slow = SlowPlanner(pool, "b")
            other = asyncio.create_task(pool.load(model(settings, "b")))
            await slow.planning.wait()
            # It looked the model up before its options were changed.
            waiting = asyncio.create_task(pool.lease(old).__aenter__())
        await until(lambda: "a" not in states(pool))
        slow.go_on.set()
        await asyncio.gather(reload, waiting, other)
        (view,) = [view for view in pool.view() if view["model"] == "a"]
        assert view["context_length"] == 128

    run(settings.model_copy(update={"serving_max_models": 9}), engine, scenario)


def test_memory_that_is_being_given_back_is_waited_for(
    settings: Settings, engine: FakeEngine, slow_death: asyncio.Event
) -> None:
    machine = SmallMachine()

    async def scenario(pool: ModelPool) -> None:
        machine.pool = pool
        await pool.load(model(settings, "a"))
        unloading = asyncio.create_task(pool.unload("a"))
        await until(lambda: states(pool)["a"][0] == "dead")
        loading = asyncio.create_task(pool.load(model(settings, "b")))
        await asyncio.sleep(0.2)
        slow_death.set()
        await asyncio.gather(unloading, loading)
        assert set(states(pool)) == {"b"}

    run(settings, engine, scenario, needs=dict.fromkeys("ab", 6 * GIB), machine=machine)


def test_unloading_a_model_that_failed_forgets_its_failures(settings: Settings, engine: FakeEngine) -> None:
    """It may be another by the same name, or come with options that work."""

    async def scenario(pool: ModelPool) -> None:
        engine.broken.touch()
        for _ in range(3):
            with pytest.raises((EngineFailed, ServingUnavailable)):
                await pool.load(model(settings, "a"))
        engine.broken.unlink()
        assert await pool.unload("a") is None
        await pool.load(model(settings, "a"))

    run(settings, engine, scenario)


def test_nothing_is_loaded_once_the_host_shuts_down(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        slow = SlowPlanner(pool, "a")
        loading = asyncio.create_task(pool.load(model(settings, "a")))
        await slow.planning.wait()
        await pool.close()
        slow.go_on.set()
        with pytest.raises(ServingUnavailable):
            await loading

    run(settings, engine, scenario)
