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
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from app.domain.error_data import error_from_dict
from app.domain.errors import BitmillError, DiskFull, IllegalTransition
from app.domain.evaluation import EvaluationRequest, EvaluationResult
from app.domain.jobs import JobKind, JobState
from app.persistence.jobs import JobRepository
from app.persistence.patience import is_away
from app.persistence.tables import ArtifactRow, JobRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage import artifacts
from workers.attempt import Attempt, CancelRequested, LeaseLost, PauseRequested, Stopping
from workers.child import Child, ChildCrashed, Message
from workers.contracts import keep_contract
from workers.lease import Lease
from workers.presence import Presence
from workers.progress import ProgressGate
from workers.publisher import Publisher, Result, plain_name
from workers.pulse import Pulse
from workers.record import AT_REST, Record
from workers.training.attempt import fine_tune
from workers.watch import WATCH_SECONDS, Watch

log = logging.getLogger(__name__)

# What a child tells that becomes an event as it is.
RECORDED: Final = frozenset({"metrics", "checkpoint"})


class Supervisor:
    def __init__(self, database: Database, settings: Settings, presence: Presence) -> None:
        self.database = database
        self.settings = settings
        self.presence = presence
        self.publisher = Publisher(database, settings)
        self._stopping = threading.Event()
        self.record = Record(database, settings, self._stopping)

    def stop(self) -> None:
        """Ends the running job's child soon and gives the job back to the queue."""
        self._stopping.set()

    def run(self, job_id: str) -> None:
        """Runs a job to its end. Losing the race for it is a quiet return."""
        if self._stopping.is_set():
            return
        # Before it is claimed: what is held and not worked on, the heartbeat gives back.
        self.presence.current_job_id = job_id
        self.presence.unwritten.discard(job_id)  # what is noted of it now is of this attempt
        try:
            attempt = self._claim(job_id)
            if attempt is not None:
                self._run_attempt(attempt)
        finally:
            self.presence.current_job_id = None
        self._clean_checkpoints()

    def _clean_checkpoints(self) -> None:
        try:
            self.presence.tidying.clean_checkpoints()
        except SQLAlchemyError as error:
            if not is_away(error):
                raise
            log.warning("the database is away: what the job kept between attempts is removed later")

    def _claim(self, job_id: str) -> Attempt | None:
        lease = Lease(self.settings.lease_seconds)
        try:
            with self.database.transaction() as session:
                jobs = JobRepository(session)
                if not self._is_able(jobs.get(job_id)):
                    log.info("left job %s to a worker that has its method's libraries", job_id)
                    return None
                number = jobs.claim(job_id, worker_id=self.presence.worker_id, lease_seconds=lease.seconds)
                job = jobs.get(job_id)
        except BitmillError as error:
            log.info("did not take job %s: %s", job_id, error)
            return None
        except SQLAlchemyError as error:
            if not is_away(error):
                raise
            log.warning("did not take job %s: the database is away", job_id)
            self.presence.unwritten.add(job_id)  # whether the claim was committed nobody knows
            return None
        return Attempt(job, number, self.settings.staging_folder / f"{job_id}-{number}", lease)

    def _is_able(self, job: JobRow) -> bool:
        return job.kind == JobKind.EVALUATION or job.method["type"] in self.presence.methods

    def _run_attempt(self, attempt: Attempt) -> None:
        try:
            WORK[JobKind(attempt.job.kind)](self, attempt)
        except LeaseLost as lost:
            log.warning("job %s: attempt %s lost its lease", attempt.job.id, attempt.number)
            self._note_if_unwritten(attempt.job.id, lost.__cause__)
        except CancelRequested:
            self.record.finish(attempt, JobState.CANCELLED, "The job was cancelled.")
        except PauseRequested:
            message = "The job is paused; resumed, it goes on from its last checkpoint."
            self.record.finish(attempt, JobState.PAUSED, message, AT_REST)
        except Stopping:
            self.record.give_back(attempt)
        except ChildCrashed as crash:
            self.record.lose(attempt, str(crash))
        except BitmillError as error:
            self.record.fail(attempt, error)
        except OSError as error:
            self.record.fail(attempt, DiskFull.from_os_error(error) or BitmillError(f"the worker failed: {error}"))
        except Exception as error:
            self._fail_unforeseen(attempt, error)
        finally:
            artifacts.remove(attempt.staging)

    def _fail_unforeseen(self, attempt: Attempt, error: Exception) -> None:
        if self._note_if_unwritten(attempt.job.id, error):
            log.warning("job %s: the database was away when attempt %s ended", attempt.job.id, attempt.number)
            return
        log.exception("job %s: attempt %s", attempt.job.id, attempt.number)
        self.record.fail(attempt, BitmillError(f"the worker failed ({type(error).__name__}); its log has the details"))

    def _note_if_unwritten(self, job_id: str, error: BaseException | None) -> bool:
        """Where the database is away nothing can be written: the heartbeat gives the job back when it answers."""
        if error is None or not is_away(error):
            return False
        self.presence.unwritten.add(job_id)
        return True

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
            existing = self.record.while_held(attempt, lambda: self.publisher.receive(attempt.job, source))
            if existing is not None:
                return existing
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
                self.import_source(attempt, source)
            result["quality"] = self.wait_for(child, attempt, "done")["quality"]
        if request.measures_engine:
            with self.child(attempt, "time") as child:
                child.send({"subject": resolved["subject"]})
                result["serving"] = self.wait_for(child, attempt, "done")["serving"]
        if request.tasks:
            with self.child(attempt, "tasks") as child:
                child.send({"subject": resolved["subject"]})
                result["tasks"] = self.wait_for(child, attempt, "done")["tasks"]
        self.record.keep_evaluation(attempt, resolved["subject"]["name"], EvaluationResult.model_validate(result))

    def import_source(self, attempt: Attempt, source: Message) -> None:
        self.record.while_held(attempt, lambda: self.publisher.import_source(source))

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
        gate, pulse = ProgressGate(), Pulse(self.settings)
        watch = Watch(self.record, attempt, self._stopping, ask_for_pause=lambda: child.send({"pause": True}))
        while True:
            message = child.receive(timeout_seconds=WATCH_SECONDS)
            if message is None:
                pulse.check()  # nothing is left to be read: the silence is the child's
            elif message["kind"] == kind:
                return message  # whether it comes too late, its commit will tell
            else:
                pulse.heard(message)
                self._hear(attempt, message, gate)
            watch.look()

    def _hear(self, attempt: Attempt, message: Message, gate: ProgressGate) -> None:
        if message["kind"] == "error":
            raise error_from_dict(message["error"])
        if message["kind"] == "paused":
            raise PauseRequested
        if message["kind"] in RECORDED:
            self.record.add(attempt, message)
        if message["kind"] == "progress":
            self.record.progress(attempt, gate, message)

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
        self.record.finish(attempt, JobState.SUCCEEDED, message, values)

    def publish(self, attempt: Attempt, result: Result, *, ends_job: bool = True) -> tuple[ArtifactRow, bool]:
        """See Publisher.publish. Raises LeaseLost or CancelRequested."""

        def write() -> tuple[ArtifactRow, bool]:
            return self.publisher.publish(attempt.job, attempt.number, attempt.artifact, result, ends_job=ends_job)

        try:
            return self.record.to_the_end(write)
        except IllegalTransition as error:
            raise self.record.why_not(attempt) from error


# What a kind of job consists of.
WORK: Final[dict[JobKind, Callable[[Supervisor, Attempt], None]]] = {
    JobKind.QUANTIZATION: Supervisor._quantize,
    JobKind.EVALUATION: Supervisor._evaluate,
    JobKind.FINE_TUNING: fine_tune,
}
