"""Decides which progress reports are worth a row, and estimates the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable

MIN_SECONDS = 0.25
MIN_STEP = 0.005


class ProgressGate:
    """Lets a new stage through at once, else at most four reports a second that say something new."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._first_fraction: float | None = None
        self._last: tuple[float, float, str] | None = None
        self.eta_seconds: float | None = None

    def lets_through(self, fraction: float, stage: str) -> bool:
        now = self._clock()
        if self._first_fraction is None:
            self._first_fraction = fraction
        if self._last is not None and not self._is_news(now, fraction, stage):
            return False
        self._last = (now, fraction, stage)
        self.eta_seconds = self._estimate(now, fraction)
        return True

    def _is_news(self, now: float, fraction: float, stage: str) -> bool:
        assert self._last is not None  # noqa: S101 -- the caller has looked
        then, last_fraction, last_stage = self._last
        return stage != last_stage or (now - then >= MIN_SECONDS and fraction - last_fraction >= MIN_STEP)

    def _estimate(self, now: float, fraction: float) -> float | None:
        assert self._first_fraction is not None  # noqa: S101 -- set by the caller
        done = fraction - self._first_fraction
        return (now - self._started) / done * (1 - fraction) if done > 0 else None
