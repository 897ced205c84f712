"""An attempt's right to go on, by a clock of this machine that nobody sets."""

from __future__ import annotations

import time
from collections.abc import Callable


class Lease:
    """Renewed by the database, judged by the local monotonic clock: the database may be away, or its clock be set."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.now = clock
        self._ends_at = clock() + seconds

    def renewed(self, asked_at: float) -> None:
        """By a transaction that began at this moment of `now`: waiting for it is not counted in."""
        self._ends_at = asked_at + self.seconds

    @property
    def has_ended(self) -> bool:
        return self.now() >= self._ends_at


class Sight:
    """Whether this worker has seen the database without a gap, long enough to judge the leases of others.

    Where the database was away nobody could renew. When it answers again, those who still work come first: their jobs
    are left to them for as long as a lease lasts. A machine that slept, or whose clock was set, has a gap as well.
    """

    def __init__(
        self,
        lease_seconds: float,
        heartbeat_seconds: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.lease_seconds = lease_seconds
        # What lies between two beats, and time for the work of a beat.
        self._usual_seconds = heartbeat_seconds + lease_seconds / 2
        self._monotonic = monotonic
        self._wall = wall
        self._seen: tuple[float, float] | None = None
        self._judges_from = float("-inf")

    def note(self) -> None:
        """The database has just answered."""
        now = (self._monotonic(), self._wall())
        if self._seen is not None:
            gap = max(abs(after - before) for after, before in zip(now, self._seen, strict=True))
            if gap > self._usual_seconds:
                self._judges_from = now[0] + self.lease_seconds
        self._seen = now

    @property
    def may_judge(self) -> bool:
        return self._seen is not None and self._monotonic() >= self._judges_from
