"""The models that are loaded: each once, at most so many, and the least recently used idle one goes first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from app.domain.errors import InsufficientMemory, ServingUnavailable
from app.settings import Settings
from workers.serving.deployment import Deployment, DeploymentState
from workers.serving.engines.base import EngineSpec
from workers.serving.failures import Failures
from workers.serving.lease import Lease
from workers.serving.machine import Machine
from workers.serving.metrics import ServingMetrics
from workers.serving.planning import EnginePlanner, Plan, Planner
from workers.serving.served import ServedModel

log = logging.getLogger(__name__)


class ModelPool:
    """Used by one event loop. `lease` is the way in for requests."""

    def __init__(
        self,
        settings: Settings,
        *,
        machine: Machine | None = None,
        planner: Planner | None = None,
        metrics: ServingMetrics | None = None,
    ) -> None:
        self.settings = settings
        self.machine = machine or Machine(settings.serving_gpu_memory_share)
        self.planner = planner or EnginePlanner(settings, self.machine)
        self.metrics = metrics or ServingMetrics()
        self._deployments: dict[str, Deployment] = {}
        self._failures: dict[str, Failures] = {}
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        # Models that are about to be loaded with other options: requests that came before bring back no old ones.
        self._coming: dict[str, ServedModel] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        # Whoever looks for room looks alone; whoever finds none waits for the event, without the lock.
        self._looking = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closed = False

    @asynccontextmanager
    async def lease(self, model: ServedModel, *, keep_alive: float | None = None) -> AsyncIterator[Lease]:
        """The model's engine with one of its slots, loaded if need be and not evicted before the block ends.

        `keep_alive` (seconds) is how long the model stays loaded after this request. Raises ServingUnavailable
        when no place became free in time, TooManyRequests when no slot did, EngineFailed or InsufficientMemory
        when the model cannot be loaded.
        """
        async with self._held(model) as deployment:
            running = await deployment.ready()
            if model.adapter is not None:
                await deployment.take(model.adapter)
            async with deployment.admission.turn() as turn:
                lease = Lease(deployment, running, turn)
                lease.require()
                deployment.requests += 1
                own = deployment.own_keep_alive_seconds
                deployment.keep_alive_seconds = own if keep_alive is None else keep_alive
                yield lease
                if running.alive and deployment.failure is None:
                    self._failures.pop(model.name, None)

    async def load(self, model: ServedModel) -> None:
        """Loads the model, again if it is loaded with other options, after its requests in flight have finished.

        Raises what `lease` raises.
        """
        self._coming[model.name] = model
        try:
            existing = self._deployments.get(model.name)
            if existing is not None and existing.model.options.loading != model.options.loading:
                await self.unload(model.name)
            async with self._held(model) as deployment:
                deployment.keep(model.options)
                await deployment.ready()
                if model.adapter is not None:
                    await deployment.take(model.adapter)
        finally:
            if self._coming.get(model.name) is model:
                del self._coming[model.name]

    async def unload(self, name: str) -> int | None:
        """Lets requests in flight finish, within the queue's timeout, then frees the model.

        An adapter alone is taken off its base. Returns the bytes of memory that its processes had, 0 where that is not
        known; None: it is not loaded.
        """
        for each in self.deployments:
            if name in each.adapters:
                return 0 if await each.drop(name) else None
        self._failures.pop(name, None)
        deployment = self._deployments.get(name)
        if deployment is None:
            return None
        if deployment.accepts:
            deployment.state = DeploymentState.STOPPING
        deadline = time.monotonic() + self.settings.serving_queue_timeout_seconds
        while deployment.in_flight and await self._wait_for_change(self._changed, deadline):
            continue
        held = deployment.running.resident_bytes() if deployment.running else None
        await self._remove(deployment)
        self._failures.pop(name, None)
        return held or 0

    async def close(self) -> None:
        """Kills every engine. Requests in flight fail."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(self._remove(each) for each in list(self._deployments.values())))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def view(self) -> list[dict[str, Any]]:
        return [deployment.view() for deployment in self.deployments]

    @property
    def deployments(self) -> list[Deployment]:
        return list(self._deployments.values())

    def loaded(self, name: str) -> ServedModel | None:
        """The model, or an adapter's base with it, as it is loaded; None where it is not, or takes no requests."""
        deployment = self._deployments.get(name)
        if deployment is not None:
            return deployment.model if deployment.accepts else None
        for each in self.deployments:
            if each.accepts and (adapter := each.adapter(name)) is not None:
                return replace(each.model, adapter=adapter)
        return None

    def engine_of(self, name: str) -> str:
        """The engine of a model that is leased."""
        return self._deployments[name].engine.spec.name

    def spec_of(self, name: str) -> EngineSpec:
        """What the engine of a model that is leased can do."""
        return self._deployments[name].engine.spec

    def why_not(self, name: str) -> str | None:
        """Why the model's engine failed at last; None where it did not."""
        failures = self._failures.get(name)
        return failures.reason if failures and failures.count else None

    @asynccontextmanager
    async def _held(self, model: ServedModel) -> AsyncIterator[Deployment]:
        deployment = await self._admit(model)
        try:
            yield deployment
        finally:
            deployment.in_flight -= 1
            deployment.last_used = time.time()
            self._schedule_expiry(deployment)
            self._notify()

    async def _admit(self, model: ServedModel) -> Deployment:
        """The model's deployment with this request counted in, so that nothing evicts it meanwhile.

        Who has waited for a while has a busy model give way: else two models that never rest would keep a third
        out for ever.
        """
        started = time.monotonic()
        deadline = started + self.settings.serving_queue_timeout_seconds
        patience = started + self.settings.serving_yield_seconds
        while True:
            async with self._looking:
                changed = self._changed  # taken before looking, so that no change is missed
                deployment = await self._find_or_deploy(model)
                if deployment is not None:
                    deployment.in_flight += 1
                    return deployment
            if await self._wait_for_change(changed, min(patience, deadline)):
                continue
            if time.monotonic() >= deadline:
                raise ServingUnavailable(
                    f"the places ({self.settings.serving_max_models}) or the memory for models are taken by busy or "
                    f"pinned ones; try again later, unload one, or raise BITMILL_SERVING_MAX_MODELS"
                )
            # Again after a while: the one to go may only be loading yet.
            patience = time.monotonic() + self.settings.serving_yield_seconds
            self._have_one_give_way(model.name)

    async def _find_or_deploy(self, model: ServedModel) -> Deployment | None:
        """None: the model is on its way out, or there is no room for it; something has to change first."""
        existing = self._deployments.get(model.name)
        if existing is not None:
            return existing if existing.accepts else None
        if self._closed:
            raise self._closing()
        model = self._coming.get(model.name, model)
        self._failures.setdefault(model.name, Failures()).check(model.name)
        plan = await asyncio.to_thread(self.planner, model)
        if not await self._make_room(model, plan):
            return None
        if self._closed:  # meanwhile
            raise self._closing()
        # Whichever adapter it was loaded for, it is the base: others ask for it too.
        base = replace(model, adapter=None)
        deployment = Deployment(base, plan.engine, plan.options, plan.estimate, self.settings, self._on_end)
        self._deployments[model.name] = deployment
        deployment.loading.add_done_callback(lambda _: self._on_loaded(deployment))
        return deployment

    def _closing(self) -> ServingUnavailable:
        return ServingUnavailable("the serving host is shutting down; send the request again later")

    async def _make_room(self, model: ServedModel, plan: Plan) -> bool:
        """Evicts idle models until there is a place and memory for this one. False: busy ones are in the way."""
        needed = plan.estimate.total_bytes
        if plan.options.remote is not None:  # loaded elsewhere: it takes no memory here, and no place
            return True
        memory = await asyncio.to_thread(self.machine.memory)
        if needed > memory.total_bytes:
            raise self._too_large(model, plan, f"this machine has {memory.total_bytes}")
        while self._places_taken() >= self.settings.serving_max_models:
            if not await self._evict_one():
                return False
        while needed > (free := await self._free_bytes()):
            if not await self._evict_one():
                # Busy models finish, and those that go give their memory back in a moment.
                if any(each.in_flight or not each.accepts for each in self.deployments):
                    return False
                raise self._too_large(model, plan, f"{max(free, 0)} are free")
        return True

    def _places_taken(self) -> int:
        """A remote model takes none: it is loaded elsewhere."""
        return sum(each.options.remote is None for each in self.deployments)

    async def _free_bytes(self) -> int:
        """What is free now, less what models that are being loaded will still take.

        No more than loaded models' estimates leave: weights that are mapped from files look free to the kernel.
        """
        memory = await asyncio.to_thread(self.machine.memory)
        spoken_for = sum(each.estimate.total_bytes for each in self.deployments)
        promised = 0
        for each in self.deployments:
            if each.state is DeploymentState.LOADING:
                taken = (each.running.resident_bytes() if each.running else None) or 0
                promised += max(each.estimate.total_bytes - taken, 0)
        return min(memory.available_bytes - promised, memory.total_bytes - spoken_for)

    def _too_large(self, model: ServedModel, plan: Plan, there_is: str) -> InsufficientMemory:
        parts = plan.estimate
        return InsufficientMemory(
            f"the model {model.name!r} needs about {parts.total_bytes} bytes of memory ({parts.weights_bytes} for "
            f"weights, {parts.cache_bytes} for a cache of {plan.options.cache_tokens} tokens, {parts.runtime_bytes} "
            f"for the engine) and {there_is}; unload another model, lower its context_length or slots, or serve a "
            f"smaller quantization"
        )

    async def _evict_one(self) -> bool:
        idle = [deployment for deployment in self._deployments.values() if deployment.evictable]
        if not idle:
            return False
        oldest = min(idle, key=lambda deployment: deployment.last_used)
        await self._remove(oldest)
        self.metrics.evicted(oldest.name)
        return True

    def _have_one_give_way(self, wanted: str) -> None:
        """The model that has been loaded longest takes no new requests, and goes when it has finished its own."""
        leaving = any(each.state is DeploymentState.STOPPING for each in self.deployments)
        ready = [each for each in self.deployments if each.state is DeploymentState.READY and not each.pinned]
        if leaving or not ready or wanted in self._deployments:
            return
        oldest = min(ready, key=lambda each: each.loaded_at)
        log.info("%s gives way to %s", oldest.name, wanted)
        self.metrics.evicted(oldest.name)
        self._in_background(self._drain(oldest))

    async def _drain(self, deployment: Deployment) -> None:
        deployment.state = DeploymentState.STOPPING
        while deployment.in_flight:
            await self._changed.wait()
        await self._remove(deployment)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _schedule_expiry(self, deployment: Deployment) -> None:
        if previous := self._expiries.pop(deployment.name, None):
            previous.cancel()
        if (moment := deployment.expires_at) is not None:
            delay = max(moment - time.time(), 0.0)
            loop = asyncio.get_running_loop()
            self._expiries[deployment.name] = loop.call_later(delay, self._expire, deployment)

    def _expire(self, deployment: Deployment) -> None:
        if deployment.expires_at is not None and self._deployments.get(deployment.name) is deployment:
            log.info("%s was idle for %g s", deployment.name, deployment.keep_alive_seconds)
            deployment.state = DeploymentState.STOPPING  # from here on nobody gets it
            self._in_background(self._remove(deployment))

    async def _remove(self, deployment: Deployment) -> None:
        """Ends even where whoever wanted it is cancelled: a model that is half removed would never load again."""
        await asyncio.shield(self._in_background(self._stop_and_forget(deployment)))

    async def _stop_and_forget(self, deployment: Deployment) -> None:
        await deployment.stop()
        self._forget(deployment)

    def _on_loaded(self, deployment: Deployment) -> None:
        if deployment.load_seconds is not None:
            self.metrics.loaded(deployment.name, deployment.engine.spec.name, deployment.load_seconds)
            self._schedule_expiry(deployment)

    def _on_end(self, deployment: Deployment, reason: str) -> None:
        """A deployment failed to load, or its engine died or was given up: the next request starts another."""
        self._failures.setdefault(deployment.name, Failures()).add(reason)
        self.metrics.failed(deployment.name, deployment.engine.spec.name)
        if (hang := deployment.vitals.hang) is not None:
            self.metrics.hung(deployment.name, deployment.engine.spec.name, hang.kind)
        self._forget(deployment)

    def _forget(self, deployment: Deployment) -> None:
        if self._deployments.get(deployment.name) is deployment:
            del self._deployments[deployment.name]
            if expiry := self._expiries.pop(deployment.name, None):
                expiry.cancel()
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_for_change(self, changed: asyncio.Event, deadline: float) -> bool:
        try:
            # Not wait_for: Python 3.11's forgets a cancellation that comes together with the change.
            async with asyncio.timeout(deadline - time.monotonic()):
                await changed.wait()
        except TimeoutError:
            return False
        return True
