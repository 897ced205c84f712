"""What jobs of every kind share: they are queued, listed, cancelled and watched alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from app.domain.errors import IllegalTransition, InvalidParameter
from app.domain.files import FilePurpose, require_purpose, uploads_in
from app.domain.jobs import FINAL_STATES, STILL_RUNNING, JobKind, JobState
from app.domain.model_names import ModelName, SourceKind
from app.persistence.artifacts import ArtifactRepository
from app.persistence.files import FileRepository
from app.persistence.jobs import NO_METADATA, JobRepository
from app.persistence.tables import JobEventRow, JobRow
from app.persistence.unit_of_work import Database
from app.queue.dispatcher import Dispatcher
from app.services.workers import WorkerService
from app.settings import Settings
from app.storage.sources import imported_folder, locate_local, trained_folder

STATES_OF_STATUS = {
    "queued": [JobState.QUEUED],
    "running": sorted(STILL_RUNNING),
    "paused": [JobState.PAUSED],
    "succeeded": [JobState.SUCCEEDED],
    "failed": [JobState.FAILED],
    "cancelled": [JobState.CANCELLED],
}


class JobService:
    """One kind of job; `kind` narrows what is found."""

    kind: ClassVar[JobKind]

    def __init__(self, database: Database, settings: Settings, dispatcher: Dispatcher, workers: WorkerService) -> None:
        self.database = database
        self.settings = settings
        self.dispatcher = dispatcher
        self.workers = workers

    def enqueue(self, job: JobRow, files: dict[str, Any]) -> JobRow:
        """Commits the job, and only then rings for a worker. `files` maps fields to values that may name uploads."""
        with self.database.transaction() as session:
            # Held, so that none of them can be deleted between here and the commit.
            needed = {file_id: param for param, value in files.items() for file_id in uploads_in(value)}
            for file_id in sorted(needed):
                FileRepository(session).hold(file_id, param=needed[file_id])
            JobRepository(session).add(job)
        self.dispatcher.send(job.id, job.queue)
        return self.get(job.id)

    def locate(self, name: ModelName) -> Path | None:
        """Where a source lies on this machine's disk; None where a worker has to fetch it."""
        if name.kind is SourceKind.FINE_TUNED:
            return self._locate_trained(name.name)
        if name.kind is not SourceKind.FILE:
            return locate_local(name, self.settings)
        with self.database.reading() as session:
            file = FileRepository(session).get(name.name, param="model")
        require_purpose(file.id, file.purpose, FilePurpose.MODEL, param="model")
        folder = imported_folder(file.sha256, self.settings)
        return folder if folder.is_dir() else None

    def _locate_trained(self, name: str) -> Path | None:
        with self.database.reading() as session:
            row = ArtifactRepository(session).get(name)
        return trained_folder(row, self.settings)

    def get(self, job_id: str) -> JobRow:
        with self.database.reading() as session:
            job = JobRepository(session).get(job_id, self.kind)
        self.workers.tell_what_they_wait_for([job])
        return job

    def page(
        self, *, limit: int, after: str | None, status: str | None = None, model: str | None = None,
        metadata: Mapping[str, str] = NO_METADATA,
    ) -> tuple[list[JobRow], bool]:  # fmt: skip
        """Up to `limit` jobs that fit all that is given, newest first, and whether more follow."""
        if status is not None and status not in STATES_OF_STATUS:
            raise InvalidParameter(
                f"status {status!r} is unknown; use one of {', '.join(STATES_OF_STATUS)}", param="status"
            )
        states = STATES_OF_STATUS[status] if status else []
        with self.database.reading() as session:
            found, has_more = JobRepository(session).page(
                kind=self.kind, limit=limit, after=after, states=states, model=model, metadata=metadata
            )
        self.workers.tell_what_they_wait_for(found)
        return found, has_more

    def cancel(self, job_id: str) -> JobRow:
        """Cancels a queued job at once and asks a running one's worker to end it.

        Cancelling twice is no error. Raises JobNotFound, or IllegalTransition for a job that has ended.
        """
        with self.database.transaction() as session:
            jobs = JobRepository(session)
            state = JobState(jobs.hold(job_id, self.kind).state)
            if state in FINAL_STATES and state is not JobState.CANCELLED:
                raise IllegalTransition(f"job {job_id!r} has already {state}; only an unfinished one can be cancelled")
            cancel_once(jobs, job_id, state)
        return self.get(job_id)

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> tuple[Sequence[JobEventRow], bool]:
        """Events above number `after`, and whether the job had ended when they were read."""
        with self.database.reading() as session:
            jobs = JobRepository(session)
            ended = JobState(jobs.get(job_id, self.kind).state) in FINAL_STATES
            return jobs.events(job_id, after=after, limit=limit), ended


def cancel_once(jobs: JobRepository, job_id: str, state: JobState) -> None:
    if state in (JobState.QUEUED, JobState.PAUSED):
        jobs.transition(job_id, JobState.CANCELLED, message="The job was cancelled.", sources=frozenset({state}))
    elif state in (JobState.RUNNING, JobState.PAUSING):
        message = "Cancellation was requested."
        jobs.transition(job_id, JobState.CANCELLING, message=message, values={"stage": "cancelling"})
