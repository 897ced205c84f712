"""Who may use a loaded model's slots, in which order, and who is told to come again later.

A request takes a slot for each piece of its work, such as one of its choices. Requests take turns: one that asks for
hundreds of choices and one that asks for a single one get every other slot that falls free.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
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


class Slot:
    """Held from the moment it is handed out until `release`, which may be called again."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._started = time.monotonic()

    def release(self) -> None:
        if self in self._turn.held:
            self._turn.held.remove(self)
            self._turn.admission.took_back(time.monotonic() - self._started)


class Turn:
    """One request among those that use a model: the slots that it holds, and the work that waits for one."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.held: set[Slot] = set()
        self.waiting: deque[asyncio.Future[Slot]] = deque()
        self._first: Slot | None = None

    async def enter(self) -> None:
        """Waits for the first slot, which the first `slot` then returns."""
        self._first = await self._next()

    async def slot(self) -> Slot:
        """Waits until it is this request's turn, however long that takes."""
        first, self._first = self._first, None
        return first or await self._next()

    def leave(self) -> None:
        """Gives back whatever is still held."""
        for slot in list(self.held):
            slot.release()

    async def _next(self) -> Slot:
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        self.admission.line_up(self)
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled():  # handed out at that very moment
                future.result().release()
            raise

    def wants_one(self) -> bool:
        """Whether work waits whose client is still there."""
        while self.waiting and self.waiting[0].done():
            self.waiting.popleft()
        return bool(self.waiting)

    def receive(self) -> None:
        slot = Slot(self)
        self.held.add(slot)
        self.waiting.popleft().set_result(slot)


class Admission:
    """One model's slots: `slots` and as many ready ahead are handed out, `queue` requests wait for their first.

    A single request holds at most `slots`: what is ready ahead of them is there for others, so that whoever comes next
    waits for one piece of a long request's work, not for two.
    """

    def __init__(self, name: str, *, slots: int, queue: int, timeout_seconds: float) -> None:
        self.name = name
        self.slots = slots
        self.queue = queue
        self.timeout_seconds = timeout_seconds
        self.running = 0
        # Requests that hold nothing yet.
        self.waiting = 0
        self._places = slots + ready_ahead(slots)
        # Whoever gets a slot goes to the end; a dict, because it keeps the order.
        self._line: dict[Turn, None] = {}
        self._average_seconds = 1.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """With a first slot. Raises TooManyRequests where the queue is full, or no slot fell free in time."""
        turn = Turn(self)
        try:
            await self._enter(turn)
            yield turn
        finally:
            turn.leave()

    async def _enter(self, turn: Turn) -> None:
        if self.running >= self._places and self.waiting >= self.queue:
            raise self._refusal(f"{self.running} requests run on the model {self.name!r} and {self.waiting} wait")
        self.waiting += 1
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await turn.enter()
        except TimeoutError as error:
            raise self._refusal(
                f"no slot of the model {self.name!r} fell free within {self.timeout_seconds:g} seconds"
            ) from error
        finally:
            self.waiting -= 1

    def line_up(self, turn: Turn) -> None:
        self._line.setdefault(turn)
        self._hand_out()

    def took_back(self, seconds: float) -> None:
        """A slot was held for so long, and is free."""
        self.running -= 1
        self._average_seconds += NEWEST_WEIGHT * (seconds - self._average_seconds)
        self._hand_out()

    def _hand_out(self) -> None:
        while self.running < self._places and (turn := self._next_in_line()) is not None:
            del self._line[turn]
            self.running += 1
            turn.receive()
            if turn.wants_one():
                self._line[turn] = None

    def _next_in_line(self) -> Turn | None:
        for turn in list(self._line):
            if not turn.wants_one():
                del self._line[turn]
            elif len(turn.held) < self.slots:
                return turn
        return None

    def _refusal(self, reason: str) -> TooManyRequests:
        rounds = (self.waiting + 1) / self.slots
        seconds = min(max(math.ceil(rounds * self._average_seconds), LEAST_RETRY), LONGEST_RETRY)
        return TooManyRequests(f"{reason}; try again in {seconds} s", retry_after_seconds=seconds)
