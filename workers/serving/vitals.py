"""Whether a loaded engine still gets anywhere. One that hangs is told from one that is only slow by any sign of life.

A sign of life is a byte of an answer to whichever request, or a count of work done that went up. An engine is given up
where several probes in a row are not answered, where it has requests and gets nowhere for long, or where requests, one
after the other, ran out of time; and each of these only where there was no sign of life meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import httpx

from app.settings import Settings

log = logging.getLogger(__name__)

# Where a probe finds no connection, it has the rest of its time to wait for one.
CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Hang:
    """Why an engine is given up: a word for the metrics, and what is said of it after "the engine"."""

    kind: str
    reason: str


class Patient(Protocol):
    """An engine as it is probed."""

    @property
    def name(self) -> str:
        """Of its model, for the log."""

    @property
    def ours(self) -> bool:
        """Whether it is to be probed even where nothing is expected of it."""

    @property
    def counts_work(self) -> bool:
        """Whether `work_done` tells anything, as far as is known."""

    async def answers(self, client: httpx.AsyncClient) -> bool:
        """Whether it says that it is well."""

    async def work_done(self, client: httpx.AsyncClient) -> object | None:
        """What changes as it works; None where it does not tell in time."""


class Vitals:
    """One running engine's. Used by one event loop."""

    def __init__(self, settings: Settings, *, now: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.hang: Hang | None = None
        # How often it is waited for at this moment. A client that reads nothing waits for nothing.
        self.awaited = 0
        self._now = now
        self._sign = now()
        self._work: object | None = None
        self._failed_probes = 0
        self._timeouts = 0
        self._latest_timeout = float("-inf")
        self._given_up = asyncio.Event()

    def sign(self) -> None:
        """The engine sent something of an answer."""
        self._sign = self._now()
        self._timeouts = 0

    def timed_out(self, started: float) -> None:
        """A request that was on the engine since then got nothing in time.

        Those that run beside each other count as one: they may be slow for the same reason.
        """
        if self._sign >= started or started < self._latest_timeout:
            return
        self._latest_timeout = self._now()
        self._timeouts += 1
        if self._timeouts >= self.settings.serving_hung_after_timeouts:
            self._give_up("timeouts", f"let {self._timeouts} requests in a row run out of time without a token")

    async def until_hung(self, patient: Patient) -> Hang:
        """Probes the engine for as long as it takes."""
        timeout = httpx.Timeout(self.settings.serving_probe_timeout_seconds, connect=CONNECT_SECONDS)
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            while self.hang is None:
                if not await self._pause():
                    await self.probe(patient, client)
            return self.hang

    async def _pause(self) -> bool:
        """Until the next probe is due. True: there is a verdict already."""
        try:
            async with asyncio.timeout(self.settings.serving_probe_seconds):
                return await self._given_up.wait()
        except TimeoutError:
            return False

    async def probe(self, patient: Patient, client: httpx.AsyncClient) -> None:
        if not self.awaited:
            self._sign = self._now()  # nothing is due from it
        if not (self.awaited or patient.ours):
            self._failed_probes = 0
            return
        asked = self._now()
        well = await patient.answers(client)
        self._failed_probes = 0 if well or self._sign > asked else self._failed_probes + 1
        if self._failed_probes:
            log.warning("the engine of %s left %d probes in a row unanswered", patient.name, self._failed_probes)
        if self._failed_probes >= self.settings.serving_hung_after_probes:
            self._give_up("probes", f"left {self._failed_probes} health probes in a row unanswered")
        elif self.awaited and patient.counts_work:
            await self._look_for_progress(patient, client)

    async def _look_for_progress(self, patient: Patient, client: httpx.AsyncClient) -> None:
        work = await patient.work_done(client)
        if work is not None and work != self._work:
            self._work = work
            self.sign()
        silence = self._now() - self._sign
        if patient.counts_work and silence >= self.settings.serving_stall_seconds:
            self._give_up("stalled", f"got nowhere for {silence:.0f} seconds with requests on it")

    def _give_up(self, kind: str, reason: str) -> None:
        self.hang = self.hang or Hang(kind, reason)
        self._given_up.set()
