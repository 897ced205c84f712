"""Submitting, pausing and resuming fine-tuning jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from app.domain.artifacts import ArtifactKind
from app.domain.errors import FileNotFound, IllegalTransition, InvalidParameter
from app.domain.files import FilePurpose, require_purpose
from app.domain.fine_tuning import Adapter, FineTuningRequest
from app.domain.jobs import JobKind, JobState, new_id
from app.domain.model_names import parse_model_name
from app.domain.training_data import check_training_file
from app.persistence.artifacts import ArtifactRepository
from app.persistence.files import FileRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow, FileRow, JobEventRow, JobRow
from app.services.job_service import JobService
from app.storage import files
from app.storage.artifacts import require_free_disk
from app.storage.checkpoints import inspect_checkpoint

# How many times its own size a model's checkpoints take at most: weights, two moments per weight, two of each.
CHECKPOINT_FACTORS = {Adapter.LORA: 1, Adapter.QLORA: 1, Adapter.FULL: 8, Adapter.QAT: 8}


class FineTuningService(JobService):
    kind = JobKind.FINE_TUNING

    def submit(self, request: FineTuningRequest) -> JobRow:
        """Checks model and every line of the data, stores the job, and only then rings for a worker.

        Raises NotFound or InvalidRequest for a model or file that cannot be used (with the number of a bad line),
        DiskFull, NoWorkerAvailable or MethodUnavailable.
        """
        self._inspect(request)
        self._check_data(request.training_file, "training_file")
        if request.validation_file is not None:
            self._check_data(request.validation_file, "validation_file")
        job = self._build(request)
        named = {"training_file": request.training_file, "validation_file": request.validation_file}
        return self.enqueue(job, {**named, "model": request.model})

    def _inspect(self, request: FineTuningRequest) -> None:
        """A source on this machine's disk is looked at before anything is queued; others by the worker."""
        artifact = self._find(request.model)
        name = request.model
        if artifact is not None and artifact.kind == ArtifactKind.QUANTIZED:
            require_trainable(artifact, request)
            name = artifact.source or name
        folder = self.locate(parse_model_name(name))
        if folder is None or folder.is_file():
            return
        checkpoint = inspect_checkpoint(folder)
        needed = checkpoint.weight_bytes * CHECKPOINT_FACTORS[request.bitmill.adapter]
        require_free_disk(self.settings.artifacts_folder, needed, self.settings.min_free_disk_bytes)

    def _find(self, name: str) -> ArtifactRow | None:
        with self.database.reading() as session:
            return ArtifactRepository(session).find(name)

    def _check_data(self, file_id: str, param: str) -> None:
        row = self._file(file_id, param)
        path = files.locate(row, self.settings)
        if not path.is_file():
            raise FileNotFound(f"the content of file {file_id!r} is gone; upload it again", param=param)
        check_training_file(path, param=param)

    def _file(self, file_id: str, param: str) -> FileRow:
        with self.database.reading() as session:
            row = FileRepository(session).get(file_id, param=param)
        require_purpose(row.id, row.purpose, FilePurpose.FINE_TUNE, param=param)
        return row

    def _build(self, request: FineTuningRequest) -> JobRow:
        now = time.time()
        adapter = request.bitmill.adapter.value
        return JobRow(
            id=new_id("ftjob"), kind=self.kind, state=JobState.QUEUED, queue=self.workers.training_queue(adapter),
            model=request.model, method={"type": adapter}, suffix=request.suffix,
            request=request.model_dump(mode="json"), user_metadata=request.metadata or {},
            created_at=now, dispatched_at=now,
        )  # fmt: skip

    def pause(self, job_id: str) -> JobRow:
        """Pauses a queued job at once and asks a running one's worker to save a checkpoint and leave it.

        Pausing twice is no error. Raises JobNotFound, or IllegalTransition for a job that has ended or is ending.
        """
        with self.database.transaction() as session:
            jobs = JobRepository(session)
            state = JobState(jobs.hold(job_id, self.kind).state)
            if state is JobState.QUEUED:
                message = "The job is paused."
                jobs.transition(job_id, JobState.PAUSED, message=message, sources=frozenset({JobState.QUEUED}))
            elif state is JobState.RUNNING:
                message = "A pause was requested."
                jobs.transition(job_id, JobState.PAUSING, message=message, values={"stage": "pausing"})
            elif state not in (JobState.PAUSING, JobState.PAUSED):
                raise IllegalTransition(f"job {job_id!r} is {state}; only a queued or running one can be paused")
        return self.get(job_id)

    def resume(self, job_id: str) -> JobRow:
        """Queues a paused job again; it goes on from its last checkpoint.

        Raises JobNotFound, or IllegalTransition for a job that is not paused.
        """
        with self.database.transaction() as session:
            jobs = JobRepository(session)
            job = jobs.hold(job_id, self.kind)
            if job.state != JobState.PAUSED:
                raise IllegalTransition(f"job {job_id!r} is {job.state}; only a paused one can be resumed")
            jobs.transition(
                job_id, JobState.QUEUED, message="The job is queued again.", sources=frozenset({JobState.PAUSED}),
                values={"dispatched_at": time.time(), "worker_id": None, "lease_expires_at": None},
            )  # fmt: skip
        self.dispatcher.send(job_id, job.queue)
        return self.get(job_id)

    def newest_events(
        self, job_id: str, *, before: int | None, limit: int, type_: str | None = None
    ) -> Sequence[JobEventRow]:
        """Raises JobNotFound."""
        with self.database.reading() as session:
            jobs = JobRepository(session)
            jobs.get(job_id, self.kind)
            return jobs.newest_events(job_id, before=before, limit=limit, type_=type_)


def require_trainable(artifact: ArtifactRow, request: FineTuningRequest) -> None:
    """Raises InvalidParameter for a quantized model that is no base for this training.

    Four bits of bitsandbytes are QLoRA's own base. Into what other methods made no gradient leads.
    """
    method = artifact.method or {}
    is_base = method.get("type") == "bitsandbytes" and method.get("quantization") in ("nf4", "fp4")
    if not is_base or request.bitmill.adapter is not Adapter.QLORA or request.bitmill.quantization:
        raise InvalidParameter(
            f"{artifact.name!r} is quantized; train its original {artifact.source!r} and quantize the result. As a "
            "base itself it serves only where bitsandbytes made its 4 bits, for the adapter qlora without a "
            "`quantization` of its own",
            param="model",
        )
