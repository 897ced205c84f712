"""Who may use a loaded model's slots, in which order, and who is told to come again later."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.domain.errors import TooManyRequests

# Beyond its slots an engine gets as many requests again, at least these, so that the next ones are there when slots
# fall free: all of them may at once, and prompts that come together are read together.
LEAST_READY_AHEAD = 2
# Seconds that a client may be told to wait.
LEAST_RETRY, LONGEST_RETRY = 1, 60
# How much the newest duration weighs in the moving average.
NEWEST_WEIGHT = 0.2


def ready_ahead(slots: int) -> int:
    return max(slots, LEAST_READY_AHEAD)


class Admission:
    """Requests enter in the order in which they came: `slots` and those ready ahead at once, `queue` waiting."""

    def __init__(self, name: str, *, slots: int, queue: int, timeout_seconds: float) -> None:
        self.name = name
        self.slots = slots
        self.queue = queue
        self.timeout_seconds = timeout_seconds
        self.running = 0
        self.waiting = 0
        self._free = asyncio.Semaphore(slots + ready_ahead(slots))
        self._average_seconds = 1.0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Raises TooManyRequests where the queue is full, or no slot fell free in time."""
        await self._enter()
        started = time.monotonic()
        try:
            yield
        finally:
            self.running -= 1
            self._average_seconds += NEWEST_WEIGHT * (time.monotonic() - started - self._average_seconds)
            self._free.release()

    async def _enter(self) -> None:
        if self._free.locked() and self.waiting >= self.queue:
            raise self._refusal(f"{self.running} requests run on the model {self.name!r} and {self.waiting} wait")
        self.waiting += 1
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await self._free.acquire()
        except TimeoutError as error:
            raise self._refusal(
                f"no slot of the model {self.name!r} fell free within {self.timeout_seconds:g} seconds"
            ) from error
        finally:
            self.waiting -= 1
        self.running += 1

    def _refusal(self, reason: str) -> TooManyRequests:
        rounds = (self.waiting + 1) / self.slots
        seconds = min(max(math.ceil(rounds * self._average_seconds), LEAST_RETRY), LONGEST_RETRY)
        return TooManyRequests(f"{reason}; try again in {seconds} s", retry_after_seconds=seconds)
