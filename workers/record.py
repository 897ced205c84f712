"""What attempts write into their jobs' rows, and read there. A database that is away is waited for.

While work goes on, waiting ends with the lease. What is left to write once it is done has no such limit: the attempt's
number guards it, so that it cannot come too late.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from app.domain.errors import BitmillError, IllegalTransition
from app.domain.evaluation import EvaluationResult
from app.domain.jobs import JobState
from app.persistence.artifacts import ArtifactRepository
from app.persistence.jobs import JobRepository
from app.persistence.patience import for_a_while, patiently
from app.persistence.unit_of_work import Database
from app.settings import Settings
from workers.attempt import Attempt, CancelRequested, LeaseLost, Stopping
from workers.child import Message
from workers.presence import release
from workers.progress import ProgressGate

T = TypeVar("T")

log = logging.getLogger(__name__)

# What the column of a job's stage holds.
STAGE_LENGTH: Final = 64
# How long a worker that is told to stop still waits for the database.
FAREWELL_SECONDS: Final = 5.0
# What a job nobody works on has in its columns.
UNHELD: Final[dict[str, Any]] = {"worker_id": None, "lease_expires_at": None, "eta_seconds": None}
AT_REST: Final[dict[str, Any]] = {**UNHELD, "stage": "paused"}
# The ends that were wished for.
GRANTED: Final[dict[JobState | None, tuple[JobState, str]]] = {
    JobState.CANCELLING: (JobState.CANCELLED, "The job was cancelled."),
    JobState.PAUSING: (JobState.PAUSED, "The job is paused."),
}


class Record:
    def __init__(self, database: Database, settings: Settings, stopping: threading.Event) -> None:
        self.database = database
        self.settings = settings
        self._stopping = stopping

    def while_held(self, attempt: Attempt, work: Callable[[], T]) -> T:
        """For a transaction in the middle of an attempt. Raises LeaseLost or Stopping where it cannot be waited for."""

        def may_go_on(error: BaseException) -> None:
            if self._stopping.is_set():
                raise Stopping from error
            if attempt.lease.has_ended:
                raise LeaseLost from error

        return patiently(work, may_go_on)

    def to_the_end(self, work: Callable[[], T]) -> T:
        """For what ends an attempt. Only a worker that is being stopped gives up: with the database's error."""
        farewell: list[Callable[[BaseException], None]] = []

        def may_go_on(error: BaseException) -> None:
            if self._stopping.is_set():
                farewell[:] = farewell or [for_a_while(FAREWELL_SECONDS)]
                farewell[0](error)

        return patiently(work, may_go_on)

    def state(self, attempt: Attempt) -> JobState | None:
        """As this attempt may know it; None once the job belongs to another."""

        def read() -> JobState | None:
            with self.database.reading() as session:
                return JobRepository(session).state_for(attempt.job.id, attempt.number)

        return self.while_held(attempt, read)

    def renew(self, attempt: Attempt) -> JobState | None:
        """Prolongs the lease and tells the state; None: another attempt has the job, or it ended."""

        def write() -> JobState | None:
            asked_at = attempt.lease.now()
            with self.database.transaction() as session:
                state = JobRepository(session).renew(
                    attempt.job.id, attempt=attempt.number, lease_seconds=attempt.lease.seconds
                )
            if state is not None:
                attempt.lease.renewed(asked_at)
            return state

        return self.while_held(attempt, write)

    def why_not(self, attempt: Attempt) -> Exception:
        """What a result that could not be committed means."""
        return CancelRequested() if self.state(attempt) is JobState.CANCELLING else LeaseLost()

    def add(self, attempt: Attempt, message: Message) -> None:
        """What a child tells that becomes an event as it is."""

        def write() -> None:
            with self.database.transaction() as session:
                JobRepository(session).record(
                    attempt.job.id, attempt=attempt.number, type_=message["kind"], message=message["message"],
                    data=message["data"],
                )  # fmt: skip

        self.while_held(attempt, write)

    def progress(self, attempt: Attempt, gate: ProgressGate, message: Message) -> None:
        """Writes what the gate finds worth a row, as progress of the whole job."""
        start, end = attempt.span
        fraction, stage = start + (end - start) * message["fraction"], message["stage"]
        shown = f"{stage} ({attempt.label})" if attempt.label else stage
        if not gate.lets_through(fraction, shown):
            return

        def write() -> None:
            with self.database.transaction() as session:
                JobRepository(session).progress(
                    attempt.job.id, attempt=attempt.number, fraction=fraction, stage=shown[:STAGE_LENGTH],
                    eta_seconds=gate.eta_seconds, metrics=message["metrics"],
                )  # fmt: skip

        self.while_held(attempt, write)

    def finish(
        self, attempt: Attempt, state: JobState, message: str, values: dict[str, Any] | None = None,
        level: str = "info",
    ) -> None:  # fmt: skip
        """Ends the attempt with its job in this state, unless somebody's wish came first."""

        def write() -> None:
            with self.database.transaction() as session:
                JobRepository(session).transition(
                    attempt.job.id, state, message=message, attempt=attempt.number, values=values, level=level
                )

        self._end(attempt, write)

    def keep_evaluation(self, attempt: Attempt, model: str, result: EvaluationResult) -> None:
        found = result.model_dump(mode="json")
        values = {"result": found, "fraction": 1.0, "stage": "done"}

        def write() -> None:
            with self.database.transaction() as session:
                JobRepository(session).transition(
                    attempt.job.id, JobState.SUCCEEDED, message=f"{model} was measured.", attempt=attempt.number,
                    values=values,
                )  # fmt: skip
                ArtifactRepository(session).keep_evaluation(model, found)

        self._end(attempt, write)

    def _end(self, attempt: Attempt, write: Callable[[], None]) -> None:
        try:
            self.to_the_end(write)
        except IllegalTransition as error:
            self._settle(attempt, error)

    def _settle(self, attempt: Attempt, error: IllegalTransition) -> None:
        """A wish to cancel or to pause that came while the attempt was ending wins over its other ends."""

        def write() -> None:
            with self.database.transaction() as session:
                jobs = JobRepository(session)
                state = jobs.state_for(attempt.job.id, attempt.number)
                if state not in GRANTED:
                    log.warning("job %s: %s", attempt.job.id, error)
                    return
                target, message = GRANTED[state]
                values = AT_REST if target is JobState.PAUSED else {}
                jobs.transition(attempt.job.id, target, message=message, attempt=attempt.number, values=values)

        self.to_the_end(write)

    def fail(self, attempt: Attempt, error: BitmillError) -> None:
        log.warning("job %s failed: %s", attempt.job.id, error)
        self.finish(attempt, JobState.FAILED, error.message, {"error": error.to_dict()}, level="error")

    def give_back(self, attempt: Attempt) -> None:
        """A worker that is stopped on purpose costs the job no attempt."""
        values = {**UNHELD, "dispatched_at": None, "fraction": 0.0}
        self.finish(attempt, JobState.QUEUED, "The worker is shutting down; the job is queued again.", values)

    def lose(self, attempt: Attempt, why: str) -> None:
        def write() -> None:
            with self.database.transaction() as session:
                jobs = JobRepository(session)
                job = jobs.get(attempt.job.id)
                if job.attempt == attempt.number:
                    release(jobs, job, self.settings, why)

        self.to_the_end(write)
