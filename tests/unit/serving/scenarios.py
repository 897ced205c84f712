"""What the tests of the pool share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import psutil

from app.domain.artifacts import ArtifactFormat
from app.domain.serving import DeploymentOptions
from app.settings import Settings
from tests.fakes.engine import FakeEngine, planner_for
from workers.serving.pool import ModelPool
from workers.serving.process import Running
from workers.serving.served import ServedModel

Scenario = Callable[[ModelPool], Coroutine[Any, Any, None]]


def run(
    settings: Settings,
    engine: FakeEngine,
    scenario: Scenario,
    *,
    needs: dict[str, int] | None = None,
    **pool_options: Any,
) -> None:
    """Runs a scenario on a pool and asserts that no process outlives it."""

    async def main() -> None:
        pool = ModelPool(settings, planner=planner_for(engine, settings, needs), **pool_options)
        try:
            await asyncio.wait_for(scenario(pool), 60)
        finally:
            await pool.close()

    asyncio.run(main())
    assert [pid for pid in engine.pids() if psutil.pid_exists(pid)] == []


def model(settings: Settings, name: str, **options: Any) -> ServedModel:
    folder = settings.artifacts_folder / name
    folder.mkdir(parents=True, exist_ok=True)
    return ServedModel(name, folder, ArtifactFormat.GGUF, options=DeploymentOptions(**options))


async def until(condition: Callable[[], object]) -> None:
    """Polls from outside, where the program itself gives a test nothing to wait for."""
    while not condition():
        await asyncio.sleep(0.01)


@asynccontextmanager
async def held(pool: ModelPool, served: ServedModel) -> AsyncIterator[Running]:
    async with pool.lease(served) as lease:
        yield lease.running


def states(pool: ModelPool) -> dict[str, tuple[str, int]]:
    return {view["model"]: (view["state"], view["in_flight"]) for view in pool.view()}
