"""Submitting, listing, cancelling and watching quantization jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.domain.artifacts import Gate
from app.domain.errors import IllegalTransition, InvalidParameter
from app.domain.files import FilePurpose, require_purpose, uploads_in
from app.domain.jobs import FINAL_STATES, JobState, new_id
from app.domain.model_names import ModelName, SourceKind, parse_model_name
from app.domain.quantization.catalog import dump_method, parse_method
from app.domain.quantization.spec import MethodParams, MethodSpec
from app.persistence.files import FileRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import JobEventRow, JobRow
from app.persistence.unit_of_work import Database
from app.queue.dispatcher import Dispatcher
from app.services.workers import WorkerService
from app.settings import Settings
from app.storage.artifacts import require_free_disk
from app.storage.checkpoints import inspect_checkpoint
from app.storage.sources import imported_folder, locate_local

STATES_OF_STATUS = {
    "queued": [JobState.QUEUED],
    "running": [JobState.RUNNING, JobState.CANCELLING],
    "succeeded": [JobState.SUCCEEDED],
    "failed": [JobState.FAILED],
    "cancelled": [JobState.CANCELLED],
}


@dataclass(frozen=True)
class NewJob:
    model: str
    method: dict[str, Any]
    suffix: str | None = None
    gate: Gate = Gate.ON
    metadata: dict[str, str] = field(default_factory=dict)


class QuantizationJobService:
    def __init__(self, database: Database, settings: Settings, dispatcher: Dispatcher, workers: WorkerService) -> None:
        self.database = database
        self.settings = settings
        self.dispatcher = dispatcher
        self.workers = workers

    def submit(self, new: NewJob) -> JobRow:
        """Checks what can be checked now, stores the job, and only then rings for a worker."""
        spec, params = parse_method(new.method)
        self._inspect(new.model, spec, params)
        job = self._build(new, spec, params)
        with self.database.transaction() as session:
            # Held, so that none of them can be deleted between here and the commit.
            for file_id in sorted(uploads_in([job.model, job.method])):
                FileRepository(session).hold(file_id, param="model" if file_id == job.model else "method")
            JobRepository(session).add(job)
        self._ring(job)
        return self.get(job.id)

    def _build(self, new: NewJob, spec: MethodSpec, params: MethodParams) -> JobRow:
        return JobRow(
            id=new_id("qjob"),
            kind="quantization",
            state=JobState.QUEUED,
            queue=self.workers.choose_queue(spec),
            model=new.model,
            method=dump_method(spec, params),
            suffix=new.suffix,
            gate=new.gate,
            user_metadata=new.metadata,
            created_at=time.time(),
            dispatched_at=time.time(),
        )

    def _inspect(self, model: str, spec: MethodSpec, params: MethodParams) -> None:
        """A source on this machine's disk is looked at before anything is queued; others by the worker."""
        folder = self._locate(parse_model_name(model))
        if folder is None or folder.is_file():
            return
        checkpoint = inspect_checkpoint(folder)
        spec.require_architecture(checkpoint.architecture, widened=self.settings.is_given(spec.widened_by))
        spec.require_groups(params, {name: info.shape for name, info in checkpoint.tensors.items()})
        needed = int(checkpoint.parameter_count * spec.bits(params) / 8)
        require_free_disk(self.settings.artifacts_folder, needed, self.settings.min_free_disk_bytes)

    def _locate(self, name: ModelName) -> Path | None:
        if name.kind is not SourceKind.FILE:
            return locate_local(name, self.settings)
        with self.database.reading() as session:
            file = FileRepository(session).get(name.name, param="model")
        require_purpose(file.id, file.purpose, FilePurpose.MODEL, param="model")
        folder = imported_folder(file.sha256, self.settings)
        return folder if folder.is_dir() else None

    def _ring(self, job: JobRow) -> None:
        self.dispatcher.send(job.id, job.queue)

    def get(self, job_id: str) -> JobRow:
        with self.database.reading() as session:
            return JobRepository(session).get(job_id)

    def page(
        self, *, limit: int, after: str | None, status: str | None, model: str | None
    ) -> tuple[list[JobRow], bool]:
        if status is not None and status not in STATES_OF_STATUS:
            raise InvalidParameter(
                f"status {status!r} is unknown; use one of {', '.join(STATES_OF_STATUS)}", param="status"
            )
        states = STATES_OF_STATUS[status] if status else []
        with self.database.reading() as session:
            return JobRepository(session).page(limit=limit, after=after, states=states, model=model)

    def cancel(self, job_id: str) -> JobRow:
        """Cancels a queued job at once and asks a running one's worker to end it.

        Cancelling twice is no error. Raises JobNotFound, or IllegalTransition for a job that has ended.
        """
        with self.database.transaction() as session:
            jobs = JobRepository(session)
            state = JobState(jobs.get(job_id).state)
            if state in FINAL_STATES and state is not JobState.CANCELLED:
                raise IllegalTransition(f"job {job_id!r} has already {state}; only an unfinished one can be cancelled")
            _cancel_once(jobs, job_id, state)
        return self.get(job_id)

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> tuple[Sequence[JobEventRow], bool]:
        """Events above number `after`, and whether the job had ended when they were read."""
        with self.database.reading() as session:
            jobs = JobRepository(session)
            ended = JobState(jobs.get(job_id).state) in FINAL_STATES
            return jobs.events(job_id, after=after, limit=limit), ended


def _cancel_once(jobs: JobRepository, job_id: str, state: JobState) -> None:
    if state is JobState.QUEUED:
        queued = frozenset({JobState.QUEUED})
        jobs.transition(job_id, JobState.CANCELLED, message="The job was cancelled.", sources=queued)
    elif state is JobState.RUNNING:
        message = "Cancellation was requested."
        jobs.transition(job_id, JobState.CANCELLING, message=message, values={"stage": "cancelling"})
