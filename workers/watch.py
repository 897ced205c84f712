"""Looks now and then whether an attempt may go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from app.domain.jobs import JobState
from workers.attempt import Attempt, CancelRequested, LeaseLost, PauseRequested, Stopping
from workers.record import Record

# How often a running job's row is read for a wish to cancel: well inside the two seconds that are promised.
WATCH_SECONDS = 0.3
# How long work that is to pause may take to save a checkpoint.
PAUSE_SECONDS = 120.0


class Watch:
    def __init__(
        self, record: Record, attempt: Attempt, stopping: threading.Event, ask_for_pause: Callable[[], None]
    ) -> None:
        self.record = record
        self.attempt = attempt
        self._stopping = stopping
        self._ask_for_pause = ask_for_pause
        self._pause_deadline: float | None = None
        self._next_look = 0.0
        self._next_renewal = 0.0

    def look(self) -> None:
        """Raises Stopping, CancelRequested, PauseRequested or LeaseLost."""
        if self._stopping.is_set():
            raise Stopping
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + WATCH_SECONDS
        self._check(self._state(now))

    def _state(self, now: float) -> JobState | None:
        if now < self._next_renewal:
            return self.record.state(self.attempt)
        self._next_renewal = now + self.record.settings.heartbeat_seconds
        return self.record.renew(self.attempt)

    def _check(self, state: JobState | None) -> None:
        if state is JobState.CANCELLING:
            raise CancelRequested
        if state is JobState.PAUSING:
            self._grant_pause()
        elif state is not JobState.RUNNING:
            raise LeaseLost

    def _grant_pause(self) -> None:
        """Gives the work time to save what it has; where it takes too long, what was saved before must do."""
        if self._pause_deadline is None:
            self._pause_deadline = time.monotonic() + PAUSE_SECONDS
            self._ask_for_pause()
        elif time.monotonic() > self._pause_deadline:
            raise PauseRequested
