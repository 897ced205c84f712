"""How long models stay loaded, what they may take, and with which options."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from app.domain.errors import InsufficientMemory, InvalidParameter, ServingUnavailable
from app.settings import Settings
from tests.fakes.engine import FakeEngine
from tests.unit.serving.scenarios import held, model, run, states, until
from workers.serving.engines.base import RemoteAddress
from workers.serving.machine import Machine, Memory
from workers.serving.pool import ModelPool

GIB = 1024**3


class SmallMachine(Machine):
    """Has 10 GiB, of which loaded models take what they were said to need."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, int] = {}
        self.pool: ModelPool | None = None

    def memory(self) -> Memory:
        loaded = [each.estimate.total_bytes for each in (self.pool.deployments if self.pool else [])]
        return Memory(10 * GIB, 10 * GIB - sum(loaded))


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path)


def test_an_idle_model_is_unloaded_after_its_keep_alive(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        async with held(pool, model(settings, "a", keep_alive=0.1)) as running:
            await asyncio.sleep(0.3)
            assert running.alive  # it is busy, however long
        await until(lambda: states(pool) == {})
        assert not running.alive

    run(settings, engine, scenario)


def test_a_request_says_how_long_its_model_stays(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        async with pool.lease(model(settings, "a"), keep_alive=0):
            pass
        await until(lambda: states(pool) == {})

    run(settings, engine, scenario)


def test_the_next_request_does_not_inherit_that(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        served = model(settings, "a", keep_alive=3600)
        async with pool.lease(served, keep_alive=7200):
            pass
        assert pool.view()[0]["keep_alive_seconds"] == 7200
        async with pool.lease(served):
            pass
        assert pool.view()[0]["keep_alive_seconds"] == 3600

    run(settings, engine, scenario)


def test_a_new_request_in_time_keeps_the_model(settings: Settings, engine: FakeEngine) -> None:
    served = model(settings, "a", keep_alive=0.4)

    async def scenario(pool: ModelPool) -> None:
        for _ in range(4):
            async with pool.lease(served):
                pass
            await asyncio.sleep(0.2)
        assert len(engine.pids()) == 1
        await until(lambda: states(pool) == {})

    run(settings, engine, scenario)


def test_a_pinned_model_is_neither_evicted_nor_expired(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        await pool.load(model(settings, "a", pinned=True, keep_alive=0))
        for name in ("b", "c"):
            async with pool.lease(model(settings, name)):
                pass
        assert set(states(pool)) == {"a", "c"}

    run(settings.model_copy(update={"serving_max_models": 2}), engine, scenario)


def test_where_all_places_are_pinned_a_request_is_refused_in_time(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        await pool.load(model(settings, "a", pinned=True))
        with pytest.raises(ServingUnavailable, match="pinned"):
            await held(pool, model(settings, "b")).__aenter__()

    small = settings.model_copy(update={"serving_max_models": 1, "serving_queue_timeout_seconds": 0.2})
    run(small, engine, scenario)


def test_other_options_load_the_model_again_after_its_requests(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        async with held(pool, model(settings, "a")) as first:
            again = asyncio.create_task(pool.load(model(settings, "a", context_length=128)))
            await until(lambda: states(pool)["a"][0] == "stopping")
            assert first.alive
        await again
        assert not first.alive
        assert pool.view()[0]["context_length"] == 128

    run(settings, engine, scenario)


def test_pinning_a_loaded_model_does_not_load_it_again(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        await pool.load(model(settings, "a"))
        await pool.load(model(settings, "a", pinned=True, keep_alive="1h"))
        view = pool.view()[0]
        assert (view["pinned"], view["keep_alive_seconds"]) == (True, 3600)

    run(settings, engine, scenario)
    assert len(engine.pids()) == 1


def test_an_option_that_the_engine_does_not_take_is_refused(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        with pytest.raises(InvalidParameter, match="does not take the option `dtype`"):
            await pool.load(model(settings, "a", dtype="float16"))

    run(settings, engine, scenario)


def test_idle_models_make_room_in_memory(settings: Settings, engine: FakeEngine) -> None:
    machine = SmallMachine()

    async def scenario(pool: ModelPool) -> None:
        machine.pool = pool
        for name in ("a", "b", "c"):
            await pool.load(model(settings, name))
        assert set(states(pool)) == {"b", "c"}

    many = settings.model_copy(update={"serving_max_models": 9})
    run(many, engine, scenario, needs=dict.fromkeys("abc", 4 * GIB), machine=machine)


def test_weights_that_are_mapped_from_files_count(settings: Settings, engine: FakeEngine) -> None:
    """The kernel calls their pages available, because it could read them again, at every token."""

    class Mapped(Machine):
        def memory(self) -> Memory:
            return Memory(10 * GIB, 10 * GIB)

    async def scenario(pool: ModelPool) -> None:
        for name in ("a", "b"):
            await pool.load(model(settings, name))
        assert set(states(pool)) == {"b"}

    run(settings, engine, scenario, needs=dict.fromkeys("ab", 6 * GIB), machine=Mapped())


def test_a_model_elsewhere_evicts_none_here(settings: Settings, engine: FakeEngine) -> None:
    class Full(Machine):
        def memory(self) -> Memory:
            return Memory(10 * GIB, -1)  # a GPU that others have filled beyond its share

    async def scenario(pool: ModelPool) -> None:
        there = model(settings, "b", remote={"server": "s", "model": "m"})
        plan = pool.planner(model(settings, "a"))
        remote = replace(plan, options=replace(plan.options, remote=RemoteAddress("http://127.0.0.1:9", "m")))
        assert await pool._make_room(there, remote)

    run(settings, engine, scenario, machine=Full())


def test_a_model_that_can_never_fit_is_refused_with_the_numbers(settings: Settings, engine: FakeEngine) -> None:
    machine = SmallMachine()

    async def scenario(pool: ModelPool) -> None:
        await pool.load(model(settings, "a"))
        with pytest.raises(InsufficientMemory, match=rf"needs about {11 * GIB} bytes .* this machine has {10 * GIB}"):
            await pool.load(model(settings, "huge"))
        assert set(states(pool)) == {"a"}  # nothing was evicted in vain

    run(settings, engine, scenario, needs={"huge": 11 * GIB}, machine=machine)


def test_memory_that_a_busy_model_holds_is_waited_for(settings: Settings, engine: FakeEngine) -> None:
    machine = SmallMachine()

    async def scenario(pool: ModelPool) -> None:
        machine.pool = pool
        async with held(pool, model(settings, "a")) as first:
            loading = asyncio.create_task(pool.load(model(settings, "b")))
            done, _ = await asyncio.wait({loading}, timeout=0.3)
            assert not done
            assert first.alive
        await loading
        assert set(states(pool)) == {"b"}

    run(settings, engine, scenario, needs=dict.fromkeys("ab", 6 * GIB), machine=machine)


def test_unloading_tells_the_memory_that_it_gave_back(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        await pool.load(model(settings, "a"))
        process = psutil.Process(engine.pids()[0])
        resident = process.memory_info().rss
        freed = await pool.unload("a")
        assert freed == pytest.approx(resident, rel=0.2)
        assert not process.is_running()

    run(settings, engine, scenario)


def test_models_that_never_rest_give_way_to_one_that_waits(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        stop = asyncio.Event()

        async def keep_busy() -> None:
            while not stop.is_set():
                async with pool.lease(model(settings, "a")):
                    await asyncio.sleep(0.05)

        clients = [asyncio.create_task(keep_busy()) for _ in range(3)]
        await until(lambda: states(pool).get("a", ("", 0))[1] == 3)
        async with pool.lease(model(settings, "b")):
            assert set(states(pool)) == {"b"}
        stop.set()
        await asyncio.gather(*clients)

    fair = {"serving_max_models": 1, "serving_yield_seconds": 0.2}
    run(settings.model_copy(update=fair), engine, scenario)


def test_a_pinned_model_does_not_give_way(settings: Settings, engine: FakeEngine) -> None:
    async def scenario(pool: ModelPool) -> None:
        async with held(pool, model(settings, "a", pinned=True)) as first:
            with pytest.raises(ServingUnavailable):
                await held(pool, model(settings, "b")).__aenter__()
            assert first.alive

    fair = {"serving_max_models": 1, "serving_yield_seconds": 0.1, "serving_queue_timeout_seconds": 0.4}
    run(settings.model_copy(update=fair), engine, scenario)
