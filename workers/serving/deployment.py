"""One model on one engine, from the first request for it until it is unloaded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EngineFailed
from app.settings import Settings
from workers.serving.engines.base import Engine, EngineOptions
from workers.serving.process import RunningEngine, log_name, new_address

log = logging.getLogger(__name__)


class DeploymentState(StrEnum):
    LOADING = "loading"  # its process runs, but does not answer yet
    READY = "ready"  # it answers
    STOPPING = "stopping"  # it takes no new requests; those in flight finish
    DEAD = "dead"  # its process is gone, or is being killed


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the pool has to know of an artifact."""

    name: str
    folder: Path
    format: ArtifactFormat


@dataclass(slots=True, eq=False)
class Deployment:
    """Loads in a task of its own, which no request owns: a client that leaves does not stop it for others."""

    model: ServedModel
    engine: Engine
    settings: Settings
    on_end: Callable[[Deployment, str], None]
    state: DeploymentState = DeploymentState.LOADING
    in_flight: int = 0
    last_used: float = field(default_factory=time.time)
    running: RunningEngine | None = None
    loading: asyncio.Task[None] = field(init=False)
    watching: asyncio.Task[None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.loading = asyncio.create_task(self._load())
        # Its error reaches whoever waits for it; if all have left, nobody does.
        self.loading.add_done_callback(lambda task: task.cancelled() or task.exception())

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def accepts(self) -> bool:
        alive = self.running is None or self.running.alive
        return alive and self.state in (DeploymentState.LOADING, DeploymentState.READY)

    @property
    def idle(self) -> bool:
        return self.accepts and self.in_flight == 0

    async def ready(self) -> RunningEngine:
        """Waits until the model is loaded. Raises EngineFailed."""
        await asyncio.wait({self.loading})
        if self.loading.cancelled():
            raise EngineFailed(f"the model {self.name!r} was unloaded while it was loading; send the request again")
        self.loading.result()
        if self.running is None or not self.running.alive:
            raise EngineFailed(f"the engine of {self.name!r} ended; send the request again and it is restarted")
        return self.running

    async def stop(self) -> None:
        """Kills the engine and waits until it is gone. Safe to call twice."""
        self.state = DeploymentState.DEAD
        if not self.loading.done():
            self.loading.cancel()
            await asyncio.wait({self.loading})
        if self.running is not None:
            await self.running.kill()

    async def _load(self) -> None:
        started = time.monotonic()
        try:
            await self._start_engine()
        except BaseException as error:
            # Cancelled or failed: either way no process may be left.
            await self._discard(error)
            raise
        if self.state is DeploymentState.LOADING:
            self.state = DeploymentState.READY
        self.watching = asyncio.create_task(self._watch())
        log.info("loaded %s on %s in %.1f s", self.name, self.engine.spec.name, time.monotonic() - started)

    async def _start_engine(self) -> None:
        await asyncio.to_thread(self.engine.check_environment)
        address = new_address()
        command = self.engine.command(self.model.folder, self._options(), address)
        self.running = await RunningEngine.start(command, address, self.settings.logs_folder / log_name(self.name))
        await self.running.wait_until_healthy(self.settings.serving_load_timeout_seconds)

    async def _discard(self, error: BaseException) -> None:
        self.state = DeploymentState.DEAD
        if self.running is not None:
            await self.running.kill()
            if isinstance(error, EngineFailed):
                log.error("%s: %s\n%s", self.name, error.message, self.running.log_tail())
        if not isinstance(error, asyncio.CancelledError):
            self.on_end(self, str(error))

    async def _watch(self) -> None:
        assert self.running is not None  # noqa: S101 -- started only after a successful load
        await asyncio.wait({self.running.ended})
        if self.state is DeploymentState.DEAD:
            return
        self.state = DeploymentState.DEAD
        log.error("the engine of %s %s\n%s", self.name, self.running.how_it_ended(), self.running.log_tail())
        await self.running.kill()  # what it started may have outlived it
        self.on_end(self, f"it {self.running.how_it_ended()}")

    def _options(self) -> EngineOptions:
        return EngineOptions(
            public_name=self.name,
            context_length=self.settings.serving_context_length,
            slots=self.settings.serving_slots,
            threads=self.settings.serving_threads,
        )

    def view(self) -> dict[str, Any]:
        return {
            "object": "deployment",
            "model": self.name,
            "engine": self.engine.spec.name,
            "state": self.state.value,
            "pid": self.running.pid if self.running else None,
            "in_flight": self.in_flight,
            "last_used_at": int(self.last_used),
            "rss_bytes": self.running.rss_bytes() if self.running else None,
        }
