"""A worker's row in the database: what its machine has, that it lives, and the sweep for lost jobs."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
from sqlalchemy.exc import SQLAlchemyError

import app
from app.domain.contract import AUTO
from app.domain.errors import IllegalTransition, WorkerLost
from app.domain.hardware import Device
from app.domain.jobs import JobState
from app.persistence.jobs import JobRepository
from app.persistence.patience import patiently
from app.persistence.tables import JobRow, WorkerRow
from app.persistence.unit_of_work import Database
from app.persistence.workers import WorkerRepository
from app.queue.dispatcher import Dispatcher
from app.settings import Settings
from workers.comparisons import advance_comparisons
from workers.devices import VISIBLE, Claim, claim_card, list_cards
from workers.lease import Sight
from workers.probe import Probe, probe_in_child
from workers.tidying import Tidying

log = logging.getLogger(__name__)

# A message that nobody answered for this long was lost, or its worker died with it in hand.
UNANSWERED_SECONDS = 5.0
# How often what was left behind is looked for, beside the start and each job's end.
TIDY_SECONDS = 3600.0


class Presence:
    """Heartbeat and sweep run in one thread; the job that is being worked on is told to it."""

    def __init__(self, database: Database, settings: Settings, dispatcher: Dispatcher) -> None:
        self.database = database
        self.settings = settings
        self.dispatcher = dispatcher
        self.tidying = Tidying(database, settings)
        self._sight = Sight(settings.lease_seconds, settings.heartbeat_seconds)
        self._tidied_at = time.monotonic()
        # A container that is started again has the same name and number, and is another worker.
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        # Jobs whose attempts ended here while the database was away, so that nothing could be written of it.
        self.unwritten: set[str] = set()
        self.current_job_id: str | None = None
        self.probe: Probe | None = None
        self._claim: Claim | None = None
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None

    def look_around(self) -> list[str]:
        """Finds out what this machine can do. Returns the queues it should take jobs from."""
        self._claim_card()
        self.probe = probe_in_child()
        return self.queues

    def _claim_card(self) -> None:
        """On a machine with GPUs: one of them for this worker and its jobs alone, or none."""
        cards = list_cards(os.environ.get(VISIBLE))
        if not cards:
            return
        self._claim = claim_card(self.settings.data_folder / "devices", cards)
        # What children see, the probe among them.
        os.environ.update(self._claim.environment())
        has = f"has GPU {self._claim.card.uuid}" if self._claim.card else "has no GPU: other workers have them all"
        log.info("worker %s %s", self.worker_id, has)

    @property
    def queues(self) -> list[str]:
        return queues_for(self.probe.hardware.devices) if self.probe else []

    @property
    def hardware(self) -> dict[str, Any] | None:
        return self.probe.hardware.model_dump(mode="json") if self.probe else None

    @property
    def methods(self) -> list[str]:
        """What this worker can be asked for: what it has the libraries of, and to search among that."""
        return [AUTO, *(name for name, problem in self.probe.methods.items() if problem is None)] if self.probe else []

    def arrive(self) -> None:
        """Writes the worker's row, takes back what died on this machine, and starts beating.

        A database that is away is waited for: without the row nobody would know of this worker.
        """
        probe = self.probe or probe_in_child()
        self._patiently(lambda: self._write_row(probe))
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        self._patiently(self.requeue_from_dead_neighbours)
        self._patiently(self.tidying.tidy)
        log.info("worker %s takes jobs from %s", self.worker_id, ", ".join(self.queues))

    def _patiently(self, work: Callable[[], None]) -> None:
        def may_go_on(error: BaseException) -> None:
            if self._leaving.is_set():
                raise error

        patiently(work, may_go_on)

    def leave(self) -> None:
        self._leaving.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        with self.database.transaction() as session:
            WorkerRepository(session).stop(self.worker_id)

    def _write_row(self, probe: Probe) -> None:
        self.probe = probe
        now = time.time()
        row = WorkerRow(
            id=self.worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            process_started_at=psutil.Process().create_time(),
            queues=self.queues,
            hardware=probe.hardware.model_dump(mode="json"),
            methods=probe.methods,
            version=app.__version__,
            started_at=now,
            heartbeat_at=now,
            stopped_at=None,
            current_job_id=None,
        )
        with self.database.transaction() as session:
            WorkerRepository(session).save(row)

    def _beat(self) -> None:
        while not self._leaving.wait(self.settings.heartbeat_seconds):
            try:
                self._beat_once()
            except (SQLAlchemyError, OSError):
                # A database that is away comes back; a worker whose heartbeat thread ended would not.
                log.exception("heartbeat failed; trying again in %s s", self.settings.heartbeat_seconds)

    def _beat_once(self) -> None:
        with self.database.transaction() as session:
            WorkerRepository(session).beat(self.worker_id, self.current_job_id)
        self._sight.note()
        self.requeue_abandoned()
        if self._sight.may_judge:
            self.requeue_expired()
        self._tidy_now_and_then()
        advance_comparisons(self.database, self.settings, self.dispatcher)
        if self.current_job_id is None:
            self.ring_for_unclaimed()

    def _tidy_now_and_then(self) -> None:
        if time.monotonic() - self._tidied_at >= TIDY_SECONDS:
            self._tidied_at = time.monotonic()
            self.tidying.tidy()

    def ring_for_unclaimed(self) -> None:
        """Sends the oldest unanswered job's id again: this worker is idle and will take it itself."""
        before = time.time() - UNANSWERED_SECONDS
        with self.database.transaction() as session:
            jobs = JobRepository(session)
            job = jobs.unclaimed(self.queues, self.methods, dispatched_before=before)
            if job is None:
                return
            jobs.mark_dispatched(job.id)
        self.dispatcher.send(job.id, job.queue)

    def requeue_abandoned(self) -> None:
        """Gives back what this worker holds by the database and does not work on.

        Where that was the database's fault it costs the job nothing.
        """
        with self.database.transaction() as session:
            jobs = JobRepository(session)
            left = [job for job in jobs.held_by(self.worker_id) if job.id != self.current_job_id]
            for job in left:
                spared = job.id in self.unwritten
                why = "the database was away as it ended" if spared else "its worker gave it up"
                release(jobs, job, self.settings, why, costs=not spared)
        self.unwritten.difference_update([job.id for job in left])

    def requeue_expired(self) -> None:
        """Takes every job back whose worker has been silent for longer than its lease."""
        with self.database.transaction() as session:
            # What this worker itself is at, it watches by its own clock.
            expired = [job for job in JobRepository(session).expired(time.time()) if job.id != self.current_job_id]
            for job in expired:
                release(JobRepository(session), job, self.settings, "its worker fell silent")
        if expired:
            self.tidying.clean_staging()

    def requeue_from_dead_neighbours(self) -> None:
        """After a crash on this machine there is no need to wait for leases: the processes are gone."""
        with self.database.transaction() as session:
            workers = WorkerRepository(session)
            for worker in workers.running_on(socket.gethostname()):
                if worker.id == self.worker_id or _is_alive(worker):
                    continue
                workers.stop(worker.id)
                for job in JobRepository(session).held_by(worker.id):
                    release(JobRepository(session), job, self.settings, "its worker died")


def queues_for(devices: frozenset[Device]) -> list[str]:
    """Every machine has a processor; one with a GPU takes both kinds, one job at a time."""
    return sorted(device.value for device in devices | {Device.CPU})


def release(jobs: JobRepository, job: JobRow, settings: Settings, why: str, *, costs: bool = True) -> None:
    """Ends one lost attempt: cancelled if that was wished, failed if it was the last, else queued again.

    With `costs` False it does not count among the attempts that a job may lose.
    """
    losses = job.losses + (1 if costs else 0)
    try:
        if job.state == JobState.CANCELLING:
            jobs.transition(job.id, JobState.CANCELLED, message="The job was cancelled.", attempt=job.attempt)
        elif job.state == JobState.PAUSING:
            values: dict[str, Any] = {"worker_id": None, "lease_expires_at": None, "stage": "paused"}
            message = f"The job is paused; its last attempt ended without saving ({why})."
            jobs.transition(job.id, JobState.PAUSED, message=message, attempt=job.attempt, level="warn", values=values)
        elif costs and losses >= settings.max_attempts:
            _fail_lost(jobs, job, why)
        else:
            message = f"Attempt {job.attempt} ended without a result ({why}); the job is queued again."
            values = {"losses": losses, "worker_id": None, "lease_expires_at": None, "dispatched_at": None}
            jobs.transition(
                job.id, JobState.QUEUED, message=message, attempt=job.attempt, level="warn", values=values,
                sources=frozenset({JobState.RUNNING}),
            )  # fmt: skip
    except IllegalTransition as error:
        log.info("job %s moved on by itself: %s", job.id, error)


def _fail_lost(jobs: JobRepository, job: JobRow, why: str) -> None:
    error = WorkerLost(
        f"the job was lost {job.losses + 1} times, last because {why}; the worker's log of the job may tell more; then "
        f"submit it again"
    )
    jobs.transition(
        job.id, JobState.FAILED, message=error.message, attempt=job.attempt, level="error",
        values={"error": error.to_dict(), "losses": job.losses + 1},
    )  # fmt: skip


def _is_alive(worker: WorkerRow) -> bool:
    try:
        return abs(psutil.Process(worker.pid).create_time() - worker.process_started_at) < 1.0
    except psutil.NoSuchProcess:
        return False
