"""The models that are loaded: each once, at most so many, and the least recently used idle one goes first."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import InsufficientMemory, ServingUnavailable
from app.settings import Settings
from app.storage.artifacts import size_bytes
from workers.serving.deployment import Deployment, DeploymentState, ServedModel
from workers.serving.engines.base import Engine
from workers.serving.engines.registry import engine_for
from workers.serving.process import RunningEngine

LONGEST_BACKOFF_SECONDS = 60.0


@dataclass(slots=True)
class Failures:
    """How often a model's engine failed in a row, and why at last. The first failure costs no waiting."""

    count: int = 0
    retry_at: float = 0.0
    reason: str = ""

    def add(self, reason: str) -> None:
        self.count += 1
        self.reason = reason
        delay = 0.0 if self.count == 1 else min(2.0 ** (self.count - 2), LONGEST_BACKOFF_SECONDS)
        self.retry_at = time.monotonic() + delay

    def check(self, name: str) -> None:
        left = self.retry_at - time.monotonic()
        if left > 0:
            raise ServingUnavailable(
                f"the engine of {name!r} failed {self.count} times in a row and is tried again in "
                f"{math.ceil(left)} s. The last time: {self.reason}"
            )


class ModelPool:
    """Used by one event loop. `lease` is the way in for requests."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine_for: Callable[[ArtifactFormat], Engine] = engine_for,
        queue_timeout_seconds: float = 60.0,
    ) -> None:
        self.settings = settings
        self.engine_for = engine_for
        self.queue_timeout_seconds = queue_timeout_seconds
        self._deployments: dict[str, Deployment] = {}
        self._failures: dict[str, Failures] = {}
        # Whoever looks for room looks alone; whoever finds none waits for the event, without the lock.
        self._looking = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closed = False

    @asynccontextmanager
    async def lease(self, model: ServedModel) -> AsyncIterator[RunningEngine]:
        """The model's engine, loaded if need be and not evicted before the block ends.

        Raises ServingUnavailable when no place became free in time, EngineFailed or InsufficientMemory when
        the model cannot be loaded.
        """
        deployment = await self._admit(model)
        try:
            running = await deployment.ready()
            yield running
            if running.alive:
                self._failures.pop(model.name, None)
        finally:
            deployment.in_flight -= 1
            deployment.last_used = time.time()
            self._notify()

    async def unload(self, name: str) -> bool:
        """Lets requests in flight finish, within the queue timeout, then frees the model. False: not loaded."""
        deployment = self._deployments.get(name)
        if deployment is None:
            return False
        if deployment.accepts:
            deployment.state = DeploymentState.STOPPING
        deadline = time.monotonic() + self.queue_timeout_seconds
        while deployment.in_flight and await self._wait_for_change(self._changed, deadline):
            continue
        await self._remove(deployment)
        self._failures.pop(name, None)
        return True

    async def close(self) -> None:
        """Kills every engine. Requests in flight fail."""
        self._closed = True
        await asyncio.gather(*(self._remove(each) for each in list(self._deployments.values())))

    def view(self) -> list[dict[str, Any]]:
        return [deployment.view() for deployment in list(self._deployments.values())]

    async def _admit(self, model: ServedModel) -> Deployment:
        """The model's deployment with this request counted in, so that nothing evicts it meanwhile."""
        deadline = time.monotonic() + self.queue_timeout_seconds
        while True:
            async with self._looking:
                changed = self._changed  # taken before looking, so that no change is missed
                deployment = await self._find_or_deploy(model)
                if deployment is not None:
                    deployment.in_flight += 1
                    return deployment
            if not await self._wait_for_change(changed, deadline):
                raise ServingUnavailable(
                    f"all {self.settings.serving_max_models} places for models are taken by busy ones; try "
                    f"again later, or raise BITMILL_SERVING_MAX_MODELS"
                )

    async def _find_or_deploy(self, model: ServedModel) -> Deployment | None:
        """None: the model is on its way out, or there is no room for it; something has to change first."""
        existing = self._deployments.get(model.name)
        if existing is not None:
            return existing if existing.accepts else None
        if self._closed:
            raise ServingUnavailable("the serving host is shutting down; send the request again later")
        self._failures.setdefault(model.name, Failures()).check(model.name)
        if not await self._make_room(model):
            return None
        deployment = Deployment(model, self.engine_for(model.format), self.settings, self._on_end)
        self._deployments[model.name] = deployment
        return deployment

    async def _make_room(self, model: ServedModel) -> bool:
        """Evicts idle models until there is a place and memory for this one. False: all places are busy."""
        while len(self._deployments) >= self.settings.serving_max_models:
            if not await self._evict_one():
                return False
        needed = await asyncio.to_thread(size_bytes, model.folder)
        while needed > (available := psutil.virtual_memory().available):
            if not await self._evict_one():
                raise InsufficientMemory(
                    f"the model {model.name!r} needs about {needed} bytes of memory, of which {available} are "
                    f"free; unload another model, or serve a smaller quantization"
                )
        return True

    async def _evict_one(self) -> bool:
        idle = [deployment for deployment in self._deployments.values() if deployment.idle]
        if not idle:
            return False
        await self._remove(min(idle, key=lambda deployment: deployment.last_used))
        return True

    async def _remove(self, deployment: Deployment) -> None:
        await deployment.stop()
        self._forget(deployment)

    def _on_end(self, deployment: Deployment, reason: str) -> None:
        """A deployment failed to load, or its engine died: the next request starts another."""
        self._failures.setdefault(deployment.name, Failures()).add(reason)
        self._forget(deployment)

    def _forget(self, deployment: Deployment) -> None:
        if self._deployments.get(deployment.name) is deployment:
            del self._deployments[deployment.name]
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_for_change(self, changed: asyncio.Event, deadline: float) -> bool:
        try:
            await asyncio.wait_for(changed.wait(), deadline - time.monotonic())
        except TimeoutError:
            return False
        return True
