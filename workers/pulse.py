"""Whether a job's process still lives and still gets on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from app.settings import Settings
from workers.child import BEAT, ChildCrashed, Message

# What a process is at before it says so.
FIRST_STAGE: Final = "starting"


class ChildHung(ChildCrashed):
    """The process is there, and nothing comes of it."""


class Pulse:
    """Told of each message, asked where none came. Times are the local monotonic clock's.

    The beats of a process's own thread tell that it runs; everything else it says tells that its work gets on.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._silence_seconds = settings.job_silence_seconds
        self._stage_seconds = settings.stage_timeout_seconds
        self._clock = clock
        self._heard_at = self._moved_at = clock()
        self._stage = FIRST_STAGE

    def heard(self, message: Message) -> None:
        self._heard_at = self._clock()
        if message["kind"] != BEAT:
            self._moved_at = self._heard_at
            self._stage = message.get("stage", self._stage)

    def check(self) -> None:
        """Raises ChildHung."""
        now = self._clock()
        if now - self._heard_at > self._silence_seconds:
            raise ChildHung(
                f"its process gave no sign of life for {self._silence_seconds:g} s in the stage {self._stage!r}; "
                f"BITMILL_JOB_SILENCE_SECONDS is the limit"
            )
        if now - self._moved_at > self._stage_seconds:
            raise ChildHung(
                f"its process got no further for {self._stage_seconds:g} s in the stage {self._stage!r}; where that "
                f"may take so long, raise BITMILL_STAGE_TIMEOUT_SECONDS"
            )
