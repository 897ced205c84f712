"""One model on one engine, from the first request for it until it is unloaded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from app.domain.errors import BitmillError, EngineFailed
from app.domain.memory import MemoryEstimate
from app.domain.serving import FOREVER, DeploymentOptions
from app.settings import Settings
from workers.serving.admission import Admission
from workers.serving.engines.base import Engine, EngineOptions, RemoteAddress
from workers.serving.probing import Probed
from workers.serving.process import Running, RunningEngine, log_name, new_address, tell
from workers.serving.remote import RemoteConnection
from workers.serving.served import ServedAdapter, ServedModel
from workers.serving.vitals import Vitals

log = logging.getLogger(__name__)


class DeploymentState(StrEnum):
    LOADING = "loading"  # its process runs, but does not answer yet
    READY = "ready"  # it answers
    STOPPING = "stopping"  # it takes no new requests; those in flight finish
    DEAD = "dead"  # its process is gone, or is being killed


@dataclass(frozen=True, slots=True, eq=False)
class LoadedAdapter:
    """An adapter beside a model, and what ends when it is there."""

    adapter: ServedAdapter
    loading: asyncio.Task[None]


@dataclass(slots=True, eq=False)
class Deployment:
    """Loads in a task of its own, which no request owns: a client that leaves does not stop it for others."""

    model: ServedModel
    engine: Engine
    options: EngineOptions
    estimate: MemoryEstimate
    settings: Settings
    on_end: Callable[[Deployment, str], None]
    state: DeploymentState = DeploymentState.LOADING
    in_flight: int = 0
    requests: int = 0
    last_used: float = field(default_factory=time.time)
    # What the newest request asked for, else the deployment's own.
    keep_alive_seconds: float = FOREVER
    own_keep_alive_seconds: float = FOREVER
    pinned: bool = False
    load_seconds: float | None = None
    loaded_at: float = 0.0
    running: Running | None = None
    adapters: dict[str, LoadedAdapter] = field(default_factory=dict)
    # The engine hears of adapters in the order in which `adapters` changed.
    _telling: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    admission: Admission = field(init=False)
    loading: asyncio.Task[None] = field(init=False)
    watching: asyncio.Task[None] | None = field(default=None, init=False)
    vitals: Vitals = field(init=False)
    # Once the engine was given up: what its requests are told, those in flight through `to_tell`.
    failure: EngineFailed | None = field(default=None, init=False)
    to_tell: set[Callable[[BitmillError], None]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.vitals = Vitals(self.settings)
        self.admission = Admission(
            self.name,
            slots=self.options.slots,
            queue=self.settings.serving_queue,
            timeout_seconds=self.settings.serving_queue_timeout_seconds,
        )
        self.keep(self.model.options)
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

    @property
    def evictable(self) -> bool:
        return self.idle and not self.pinned

    @property
    def expires_at(self) -> float | None:
        """When it has been idle for long enough; None: not by itself."""
        idle = self.evictable and self.state is DeploymentState.READY
        if not idle or self.keep_alive_seconds == FOREVER:
            return None
        return self.last_used + self.keep_alive_seconds

    def keep(self, options: DeploymentOptions) -> None:
        """Takes over for how long it stays loaded."""
        given = options.keep_alive
        self.own_keep_alive_seconds = self.settings.serving_keep_alive if given is None else given
        self.keep_alive_seconds = self.own_keep_alive_seconds
        self.pinned = options.pinned

    async def ready(self) -> Running:
        """Waits until the model is loaded. Raises EngineFailed."""
        await asyncio.wait({self.loading})
        if self.loading.cancelled():
            raise EngineFailed(f"the model {self.name!r} was unloaded while it was loading; send the request again")
        self.loading.result()
        if self.running is None or not self.running.alive:
            raise EngineFailed(f"the engine of {self.name!r} ended; send the request again and it is restarted")
        return self.running

    async def take(self, adapter: ServedAdapter) -> None:
        """Waits until the adapter is loaded beside the model, once however many wait. Raises EngineFailed."""
        held = self.adapters.get(adapter.name)
        if held is None or _has_failed(held.loading):  # where whoever waited for it had left
            held = LoadedAdapter(adapter, asyncio.create_task(self._load_adapter(adapter)))
            self.adapters[adapter.name] = held
        try:
            await asyncio.shield(held.loading)
        except EngineFailed:
            # The next request tries again.
            if self.adapters.get(adapter.name) is held:
                del self.adapters[adapter.name]
            raise

    def adapter(self, name: str) -> ServedAdapter | None:
        """One that is loaded, or about to be."""
        held = self.adapters.get(name)
        return held.adapter if held is not None else None

    async def _load_adapter(self, adapter: ServedAdapter) -> None:
        running = await self.ready()
        self.engine.require_adapter(self.options, adapter.folders)
        async with self._telling:
            await tell(running, self.engine.load_adapter(adapter.name, adapter.folders))
        log.info("loaded %s beside %s", adapter.name, self.name)

    async def drop(self, name: str) -> bool:
        """Unloads an adapter. Requests in flight keep it. False: it was not loaded."""
        held = self.adapters.pop(name, None)
        if held is None or self.running is None or not self.accepts:
            return held is not None
        await asyncio.wait({held.loading})
        async with self._telling:
            if name not in self.adapters:  # else it is wanted again, and stays
                await tell(self.running, self.engine.unload_adapter(name))
        return True

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
        self.load_seconds = time.monotonic() - started
        self.loaded_at = self.last_used = time.time()
        self.watching = asyncio.create_task(self._watch())
        log.info("loaded %s on %s in %.1f s", self.name, self.engine.spec.name, self.load_seconds)

    async def _start_engine(self) -> None:
        await asyncio.to_thread(self.engine.check_environment)
        address = new_address()
        command = await asyncio.to_thread(self.engine.command, self.model.folder, self.options, address)
        if isinstance(command, RemoteAddress):
            self.running = RemoteConnection(command)
        else:
            logged = self.settings.logs_folder / log_name(self.name)
            self.running = await RunningEngine.start(command, address, logged)
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
        reason = await self._end(self.running)
        if self.state is DeploymentState.DEAD:
            return
        self.state = DeploymentState.DEAD
        log.error("the engine of %s %s\n%s", self.name, reason, self.running.log_tail())
        self._fail(reason)
        await self.running.kill()  # what it started may have outlived it
        self.on_end(self, f"it {reason}")

    async def _end(self, running: Running) -> str:
        """Waits for it: what the engine did, by itself or to be given up."""
        hanging = asyncio.create_task(self.vitals.until_hung(Probed(self.name, self.engine, running)))
        try:
            ends: set[asyncio.Future[Any]] = {running.ended, hanging}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return running.how_it_ended() if running.ended.done() else hanging.result().reason
        finally:
            hanging.cancel()

    def _fail(self, reason: str) -> None:
        """Its requests are not kept waiting for an answer that will not come."""
        self.failure = EngineFailed(f"the engine of {self.name!r} {reason}; send the request again and it is restarted")
        for hears in list(self.to_tell):
            hears(self.failure)

    def view(self) -> dict[str, Any]:
        expires_at = self.expires_at  # asked once: a request may come meanwhile
        return {
            "object": "deployment",
            "model": self.name,
            "state": self.state.value,
            "engine": self.engine.spec.name,
            "pinned": self.pinned,
            "keep_alive_seconds": self.keep_alive_seconds,
            "expires_at": int(expires_at) if expires_at is not None else None,
            "context_length": self.options.context_length,
            "slots": self.options.slots,
            "slots_in_use": min(self.admission.running, self.options.slots),
            "in_flight": self.in_flight,
            "requests": self.requests,
            "adapters": sorted(self.adapters),
            "last_used_at": int(self.last_used),
            "load_seconds": self.load_seconds,
            "pid": self.running.pid if self.running else None,
            "memory": {
                "estimated": self.estimate.view(),
                "resident_bytes": self.running.resident_bytes() if self.running else None,
            },
            "error": None,
        }


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
