"""Runs one job: claim, child processes, lease, cancellation, publication. Imports no ML library.

A job is two child processes, one after the other. Of a quantization the first resolves the source and quantizes,
the second loads what the first wrote and proves it; of an evaluation the first scores, the second times the serving;
of a training the first trains, the second measures what came of it.
Whatever they allocate or break ends with them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.domain.errors import BitmillError, DiskFull, IllegalTransition, error_from_dict
from app.domain.evaluation import EvaluationRequest, EvaluationResult
from app.domain.jobs import JobKind, JobState
from app.persistence.artifacts import ArtifactRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow, JobRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage import artifacts
from workers.child import Child, ChildCrashed, Message
from workers.contracts import keep_contract
from workers.presence import Presence, release
from workers.progress import ProgressGate
from workers.publisher import Publisher, Result, plain_name
from workers.training.attempt import fine_tune
from workers.watch import WATCH_SECONDS, CancelRequested, LeaseLost, PauseRequested, Stopping, Watch

log = logging.getLogger(__name__)

# What the column of a job's stage holds.
STAGE_LENGTH = 64
# What a job nobody works on has in its columns.
UNHELD: Final[dict[str, Any]] = {"worker_id": None, "lease_expires_at": None, "eta_seconds": None}
AT_REST: Final[dict[str, Any]] = {**UNHELD, "stage": "paused"}
# What a child tells that becomes an event as it is.
RECORDED: Final = frozenset({"metrics", "checkpoint"})
# The ends that were wished for.
GRANTED: Final[dict[JobState | None, tuple[JobState, str]]] = {
    JobState.CANCELLING: (JobState.CANCELLED, "The job was cancelled."),
    JobState.PAUSING: (JobState.PAUSED, "The job is paused."),
}


@dataclass(frozen=True)
class Attempt:
    job: JobRow
    number: int
    staging: Path
    # Which part of the job's progress the work at hand fills, and what it is called there.
    span: tuple[float, float] = (0.0, 1.0)
    label: str = ""

    @property
    def artifact(self) -> Path:
        return self.staging / "artifact"


class Supervisor:
    def __init__(self, database: Database, settings: Settings, presence: Presence) -> None:
        self.database = database
        self.settings = settings
        self.presence = presence
        self.publisher = Publisher(database, settings)
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Ends the running job's child soon and gives the job back to the queue."""
        self._stopping.set()

    def run(self, job_id: str) -> None:
        """Runs a job to its end. Losing the race for it is a quiet return."""
        if self._stopping.is_set():
            return
        attempt = self._claim(job_id)
        if attempt is None:
            return
        self.presence.current_job_id = job_id
        try:
            self._run_attempt(attempt)
        finally:
            self.presence.current_job_id = None
            artifacts.remove(attempt.staging)
            self.presence.tidying.clean_checkpoints()

    def _claim(self, job_id: str) -> Attempt | None:
        try:
            with self.database.transaction() as session:
                jobs = JobRepository(session)
                if not self._is_able(jobs.get(job_id)):
                    log.info("left job %s to a worker that has its method's libraries", job_id)
                    return None
                number = jobs.claim(
                    job_id, worker_id=self.presence.worker_id, lease_seconds=self.settings.lease_seconds
                )
                job = jobs.get(job_id)
        except BitmillError as error:
            log.info("did not take job %s: %s", job_id, error)
            return None
        return Attempt(job, number, self.settings.staging_folder / f"{job_id}-{number}")

    def _is_able(self, job: JobRow) -> bool:
        return job.kind == JobKind.EVALUATION or job.method["type"] in self.presence.methods

    def _run_attempt(self, attempt: Attempt) -> None:
        try:
            WORK[JobKind(attempt.job.kind)](self, attempt)
        except LeaseLost:
            log.warning("job %s: attempt %s lost its lease", attempt.job.id, attempt.number)
        except CancelRequested:
            self.finish(attempt, JobState.CANCELLED, "The job was cancelled.")
        except PauseRequested:
            message = "The job is paused; resumed, it goes on from its last checkpoint."
            self.finish(attempt, JobState.PAUSED, message, AT_REST)
        except Stopping:
            self._give_back(attempt)
        except ChildCrashed as crash:
            self._lose(attempt, str(crash))
        except BitmillError as error:
            self._fail(attempt, error)
        except OSError as error:
            self._fail(attempt, DiskFull.from_os_error(error) or BitmillError(f"the worker failed: {error}"))

    def _quantize(self, attempt: Attempt) -> None:
        if "contract" in (attempt.job.request or {}):
            return keep_contract(self, attempt)
        made = self.make(attempt)
        if isinstance(made, ArtifactRow):
            return self._reuse(attempt, made)
        row, is_new = self.publish(attempt, made)
        return None if is_new else self._reuse(attempt, row)

    def make(self, attempt: Attempt) -> ArtifactRow | Result:
        """The artifact of an identical request, or what was made and proven in its place, still to be published."""
        started = time.monotonic()
        attempt.staging.mkdir(parents=True, exist_ok=True)
        with self.child(attempt, "quantize") as child:
            source = self.wait_for(child, attempt, "resolved")
            self.publisher.import_source(source)
            existing = self.publisher.find_existing(attempt.job, source)
            if existing is not None:
                return existing
            self.publisher.predict(attempt.job, source)
            child.send({"go": True})
            made = self.wait_for(child, attempt, "done")
        with self.child(attempt, "prove") as child:
            child.send({"source": source, "made": made, "name": plain_name(attempt.job, source["name"])})
            proof = self.wait_for(child, attempt, "done")
        made["seconds"] = time.monotonic() - started
        made["peak_memory_bytes"] = max(made["peak_memory_bytes"], proof["peak_memory_bytes"])
        return Result(source=source, made=made, proof=proof)

    def _evaluate(self, attempt: Attempt) -> None:
        request = EvaluationRequest.model_validate(attempt.job.request)
        result: Message = {"hardware": self.presence.hardware}
        with self.child(attempt, "evaluate") as child:
            resolved = self.wait_for(child, attempt, "resolved")
            for source in resolved["sources"]:
                self.publisher.import_source(source)
            result["quality"] = self.wait_for(child, attempt, "done")["quality"]
        if request.measures_engine:
            with self.child(attempt, "time") as child:
                child.send({"subject": resolved["subject"]})
                result["serving"] = self.wait_for(child, attempt, "done")["serving"]
        if request.tasks:
            with self.child(attempt, "tasks") as child:
                child.send({"subject": resolved["subject"]})
                result["tasks"] = self.wait_for(child, attempt, "done")["tasks"]
        self._keep(attempt, resolved["subject"]["name"], EvaluationResult.model_validate(result))

    def _keep(self, attempt: Attempt, model: str, result: EvaluationResult) -> None:
        found = result.model_dump(mode="json")
        values = {"result": found, "fraction": 1.0, "stage": "done"}
        try:
            with self.database.transaction() as session:
                message = f"{model} was measured."
                JobRepository(session).transition(
                    attempt.job.id, JobState.SUCCEEDED, message=message, attempt=attempt.number, values=values
                )
                ArtifactRepository(session).keep_evaluation(model, found)
        except IllegalTransition as error:
            self._settle(attempt, error)

    def child(self, attempt: Attempt, step: str) -> Child:
        job = attempt.job
        task = {
            "step": step,
            "model": job.model,
            "method": job.method,
            "request": job.request,
            "gate": job.gate,
            "artifact": str(attempt.artifact),
            "checkpoints": str(self.settings.checkpoints_folder / job.id),
        }
        return Child("workers.job_process", task, log=self.settings.logs_folder / "jobs" / f"{job.id}.log")

    def wait_for(self, child: Child, attempt: Attempt, kind: str) -> Message:
        """Passes progress on until a message of this kind arrives; watches lease and wishes meanwhile."""
        gate = ProgressGate()
        watch = Watch(self, attempt, ask_for_pause=lambda: child.send({"pause": True}))
        while True:
            message = child.receive(timeout_seconds=WATCH_SECONDS)
            watch.look()
            if message is None:
                continue
            if message["kind"] == kind:
                return message
            if message["kind"] == "error":
                raise error_from_dict(message["error"])
            if message["kind"] == "paused":
                raise PauseRequested
            if message["kind"] in RECORDED:
                self._record(attempt, message)
            if message["kind"] == "progress":
                self._pass_on(attempt, gate, message)

    def _pass_on(self, attempt: Attempt, gate: ProgressGate, message: Message) -> None:
        start, end = attempt.span
        fraction, stage = start + (end - start) * message["fraction"], message["stage"]
        shown = f"{stage} ({attempt.label})" if attempt.label else stage
        if gate.lets_through(fraction, shown):
            self._record_progress(attempt, gate, message | {"fraction": fraction, "stage": shown[:STAGE_LENGTH]})

    def _record(self, attempt: Attempt, message: Message) -> None:
        with self.database.transaction() as session:
            JobRepository(session).record(
                attempt.job.id,
                attempt=attempt.number,
                type_=message["kind"],
                message=message["message"],
                data=message["data"],
            )

    def _record_progress(self, attempt: Attempt, gate: ProgressGate, message: Message) -> None:
        with self.database.transaction() as session:
            JobRepository(session).progress(
                attempt.job.id,
                attempt=attempt.number,
                fraction=message["fraction"],
                stage=message["stage"],
                eta_seconds=gate.eta_seconds,
                metrics=message["metrics"],
            )

    def _reuse(self, attempt: Attempt, existing: ArtifactRow) -> None:
        values = {
            "artifact_id": existing.id,
            "quantized_model": existing.name,
            "quality": existing.quality,
            "fraction": 1.0,
            "stage": "reused",
            "reused": True,
        }
        message = f"The same request made {existing.name} before; it is reused."
        self.finish(attempt, JobState.SUCCEEDED, message, values)

    def publish(self, attempt: Attempt, result: Result, *, ends_job: bool = True) -> tuple[ArtifactRow, bool]:
        """See Publisher.publish. Raises LeaseLost or CancelRequested."""
        if self.renew(attempt) is None:
            raise LeaseLost
        try:
            return self.publisher.publish(attempt.job, attempt.number, attempt.artifact, result, ends_job=ends_job)
        except IllegalTransition as error:
            raise self.why_not(attempt) from error

    def why_not(self, attempt: Attempt) -> Exception:
        """What a result that could not be committed means."""
        return CancelRequested() if self.state(attempt) is JobState.CANCELLING else LeaseLost()

    def state(self, attempt: Attempt) -> JobState | None:
        with self.database.reading() as session:
            return JobRepository(session).state_for(attempt.job.id, attempt.number)

    def renew(self, attempt: Attempt) -> JobState | None:
        with self.database.transaction() as session:
            return JobRepository(session).renew(
                attempt.job.id, attempt=attempt.number, lease_seconds=self.settings.lease_seconds
            )

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def finish(
        self, attempt: Attempt, state: JobState, message: str, values: dict[str, Any] | None = None,
        level: str = "info",
    ) -> None:  # fmt: skip
        try:
            with self.database.transaction() as session:
                JobRepository(session).transition(
                    attempt.job.id, state, message=message, attempt=attempt.number, values=values, level=level
                )
        except IllegalTransition as error:
            self._settle(attempt, error)

    def _settle(self, attempt: Attempt, error: IllegalTransition) -> None:
        """A wish to cancel or to pause that came while the attempt was ending wins over its other ends."""
        state = self.state(attempt)
        if state not in GRANTED:
            log.warning("job %s: %s", attempt.job.id, error)
            return
        target, message = GRANTED[state]
        values = AT_REST if target is JobState.PAUSED else {}
        with self.database.transaction() as session:
            JobRepository(session).transition(
                attempt.job.id, target, message=message, attempt=attempt.number, values=values
            )

    def _fail(self, attempt: Attempt, error: BitmillError) -> None:
        log.warning("job %s failed: %s", attempt.job.id, error)
        self.finish(attempt, JobState.FAILED, error.message, {"error": error.to_dict()}, level="error")

    def _give_back(self, attempt: Attempt) -> None:
        """A worker that is stopped on purpose costs the job no attempt."""
        values = {**UNHELD, "dispatched_at": None, "fraction": 0.0}
        self.finish(attempt, JobState.QUEUED, "The worker is shutting down; the job is queued again.", values)

    def _lose(self, attempt: Attempt, why: str) -> None:
        with self.database.transaction() as session:
            jobs = JobRepository(session)
            job = jobs.get(attempt.job.id)
            if job.attempt == attempt.number:
                release(jobs, job, self.settings, why)


# What a kind of job consists of.
WORK: Final[dict[JobKind, Callable[[Supervisor, Attempt], None]]] = {
    JobKind.QUANTIZATION: Supervisor._quantize,
    JobKind.EVALUATION: Supervisor._evaluate,
    JobKind.FINE_TUNING: fine_tune,
}
