"""A running engine as it is probed: what it is asked, and by which way."""

from __future__ import annotations

import httpx

from workers.serving.admission import Admission
from workers.serving.engines.base import Engine
from workers.serving.process import Running


class Probed:
    """A remote server is only asked while it has requests of ours: it is not ours to watch over."""

    def __init__(self, engine: Engine, running: Running, admission: Admission) -> None:
        self._engine = engine
        self._running = running
        self._admission = admission

    @property
    def busy(self) -> bool:
        return self._admission.running > 0

    @property
    def probed(self) -> bool:
        return self.busy or self._running.pid is not None

    @property
    def counts_work(self) -> bool:
        return self._engine.progress_path is not None

    async def answers(self, client: httpx.AsyncClient) -> bool:
        return await self._running.answers(client)

    async def work_done(self, client: httpx.AsyncClient) -> object | None:
        path = self._engine.progress_path
        assert path is not None  # noqa: S101 -- asked by the caller
        try:
            answer = await client.get(self._running.url(path), headers=self._running.headers)
        except httpx.TransportError:
            return None  # too busy, or hung: time tells
        return self._engine.work_done(answer.text) if answer.is_success else None
