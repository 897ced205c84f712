"""A running engine as it is probed: what it is asked, and by which way."""

from __future__ import annotations

import httpx

from workers.serving.engines.base import Engine
from workers.serving.process import Running


class Probed:
    def __init__(self, name: str, engine: Engine, running: Running) -> None:
        self.name = name
        self.counts_work = engine.progress_path is not None
        self._engine = engine
        self._running = running

    @property
    def ours(self) -> bool:
        """A server elsewhere is not: it is asked only while it has requests."""
        return self._running.pid is not None

    async def answers(self, client: httpx.AsyncClient) -> bool:
        return await self._running.answers(client)

    async def work_done(self, client: httpx.AsyncClient) -> object | None:
        path = self._engine.progress_path
        assert path is not None  # noqa: S101 -- asked by the caller
        try:
            answer = await client.get(self._running.url(path), headers=self._running.headers)
        except httpx.RequestError:
            return None  # too busy, or hung: time tells
        work = self._engine.work_done(answer.text) if answer.is_success else None
        # An engine that answers and tells nothing, such as another version of it, is not judged by that.
        self.counts_work = work is not None
        return work
