"""How long an answer may take, and what is said of one that takes longer or can no longer come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

from app.domain.errors import BitmillError, EngineTimeout
from app.settings import Settings


class Deadline:
    """The moment until which an answer must be whole, and until which a streamed one must begin.

    `timed_out` is told the moment, on the monotonic clock, since which the engine had time for the answer.
    """

    def __init__(self, settings: Settings, timed_out: Callable[[float], None]) -> None:
        now = asyncio.get_running_loop().time()
        self.first_token_seconds = settings.serving_first_token_timeout_seconds
        self.total_seconds = settings.serving_total_timeout_seconds
        self.total = now + self.total_seconds
        self._first_token = now + min(self.first_token_seconds, self.total_seconds)
        self._started = time.monotonic()
        self._timed_out = timed_out
        self._failure: BitmillError | None = None
        self._timer: asyncio.Timeout | None = None

    def begun(self) -> _Span:
        """Within this block a streamed answer must begin. Raises EngineTimeout, or what `fail` was given."""
        return _Span(self, self._first_token, self._no_first_token)

    def whole(self) -> _Span:
        """Within this block an answer must end. Raises EngineTimeout, or what `fail` was given."""
        return _Span(self, self.total, self._not_whole)

    def fail(self, error: BitmillError) -> None:
        """Ends the wait at once: nothing will come."""
        self._failure = error
        if self._timer is not None:
            self._timer.reschedule(asyncio.get_running_loop().time())

    def timer(self, moment: float) -> asyncio.Timeout:
        self._timer = asyncio.timeout_at(0.0 if self._failure else moment)
        return self._timer

    def stop(self) -> None:
        self._timer = None

    def over(self, late: Callable[[], EngineTimeout]) -> BitmillError:
        """Why the wait ended."""
        if self._failure is not None:
            return self._failure
        self._timed_out(self._started)
        return late()

    def _no_first_token(self) -> EngineTimeout:
        return EngineTimeout(
            f"the answer did not begin within {self.first_token_seconds:g} seconds; shorten the prompt, or raise "
            f"BITMILL_SERVING_FIRST_TOKEN_TIMEOUT_SECONDS"
        )

    def _not_whole(self) -> EngineTimeout:
        return EngineTimeout(
            f"the answer was not complete after {self.total_seconds:g} seconds; lower max_tokens, or raise "
            f"BITMILL_SERVING_TOTAL_TIMEOUT_SECONDS"
        )


class _Span:
    def __init__(self, deadline: Deadline, moment: float, late: Callable[[], EngineTimeout]) -> None:
        self._deadline = deadline
        self._late = late
        self._timer = deadline.timer(moment)

    async def __aenter__(self) -> None:
        await self._timer.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadline.stop()
        try:
            await self._timer.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise self._deadline.over(self._late) from late
