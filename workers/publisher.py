"""What a job leaves in the store and in the database, once it is proven."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.domain.artifacts import ArtifactFormat, ArtifactKind, Gate, QualityCard, QuantizationReport, artifact_key
from app.domain.errors import BitmillError, Conflict
from app.domain.jobs import JobState, new_id
from app.domain.model_names import FINE_TUNED_PREFIX
from app.domain.quantization.catalog import parse_method
from app.persistence.artifacts import ArtifactRepository
from app.persistence.files import FileRepository
from app.persistence.jobs import JobRepository
from app.persistence.predictions import predict_job
from app.persistence.tables import ArtifactRow, FileRow, JobEventRow, JobRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage import artifacts, files
from app.storage.checkpoints import inspect_checkpoint
from app.storage.shapes import shape_of_checkpoint
from workers.child import Message
from workers.training.results import as_csv, store
from workers.versions import versions_of


@dataclass(frozen=True)
class Result:
    """What the children of one attempt said: about the source, the quantization, the proof."""

    source: Message
    made: Message
    proof: Message
    # Once for all tries to publish it.
    artifact_id: str = field(default_factory=lambda: new_id("artifact"))


@dataclass(frozen=True)
class Trained:
    """What the children of one training said, and what of it the job's `result` keeps.

    `made["method"]` is what the artifact's row says of how it was made; `base` in it, the model that an adapter is
    served on.
    """

    source: Message
    made: Message
    manifest_sha256: str
    result: Message
    artifact_id: str = field(default_factory=lambda: new_id("artifact"))


class Publisher:
    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings

    def receive(self, job: JobRow, source: Message) -> ArtifactRow | None:
        """Lists the original, and finds what an identical request made; else the job gets its prediction."""
        self.import_source(source)
        existing = self.find_existing(job, source)
        if existing is None:
            self.predict(job, source)
        return existing

    def import_source(self, source: Message) -> None:
        """Lists the original among the models, once. Raises Conflict if its name is a result's."""
        try:
            self._import(source)
        except IntegrityError:
            self._import(source)  # another worker, which listed it at the same moment, is seen now

    def _import(self, source: Message) -> None:
        with self.database.transaction() as session:
            repository = ArtifactRepository(session)
            existing = repository.find(source["name"])
            if existing is not None and existing.kind == ArtifactKind.FINE_TUNED:
                return
            if existing is not None and existing.kind != ArtifactKind.BASE:
                raise Conflict(f"the name {source['name']!r} belongs to a quantized model; rename the folder")
            if existing is not None and existing.source_fingerprint == source["fingerprint"]:
                return
            if existing is not None:  # the folder's files changed: the row follows
                repository.delete(existing.id)
            repository.add(_base_row(source))

    def predict(self, job: JobRow, source: Message) -> None:
        """Stores what the job is expected to take, where its submission could not tell."""
        if job.predicted is not None:
            return
        shape = shape_of_checkpoint(inspect_checkpoint(Path(source["path"])))
        with self.database.transaction() as session:
            JobRepository(session).keep_prediction(job.id, predict_job(session, job.method, shape))

    def find_existing(self, job: JobRow, source: Message) -> ArtifactRow | None:
        """The artifact of an identical request, if its files are still there."""
        with self.database.reading() as session:
            return self._existing(session, job, source)

    def _existing(self, session: Session, job: JobRow, source: Message) -> ArtifactRow | None:
        row = ArtifactRepository(session).find_result(_key(job, source), job.suffix)
        return row if row is not None and artifacts.locate(row, self.settings).is_dir() else None

    def publish(
        self, job: JobRow, attempt: int, staged: Path, result: Result, *, ends_job: bool = True
    ) -> tuple[ArtifactRow, bool]:
        """Renames a sealed folder into the store, then commits its row together with the job's success.

        Returns the row and whether it is new: an identical artifact stands in its place, and the job is left as it
        was, if another job published one in the meantime. With `ends_job` False the job goes on in any case. Raises
        IllegalTransition, with nothing left behind, when the attempt no longer owns the job. Where the database went
        away nobody knows whether the row was committed: called again, it goes on from whatever is there. A crash in
        between leaves a folder that no row names, which goes into quarantine.
        """
        with self._stored(staged, result.artifact_id) as folder, self.database.transaction() as session:
            existing = self._existing(session, job, result.source)
            if existing is None:
                row = _quantized_row(job, result.artifact_id, result, artifacts.size_bytes(folder))
                self._commit(session, job, attempt, row, ends_job=ends_job)
        if existing is None:
            return row, True
        if existing.id == result.artifact_id:
            return existing, True
        artifacts.remove(folder)
        return existing, False

    @contextmanager
    def _stored(self, staged: Path, artifact_id: str) -> Iterator[Path]:
        """The folder in the store. Where what follows is refused, it is gone again."""
        folder = artifacts.publish(staged, self.settings, artifact_id)
        try:
            yield folder
        except BitmillError:
            artifacts.remove(folder)
            raise

    def publish_trained(self, job: JobRow, attempt: int, staged: Path, trained: Trained) -> None:
        """The same for a trained model, of which no other job can have made an equal.

        Raises IllegalTransition or DiskFull, with nothing left behind.
        """
        if self._is_published(trained.artifact_id):  # by a call that was not told so
            return
        row = _trained_row(job, trained.artifact_id, trained)
        file = store(as_csv(self._events(job.id)), self.settings)
        try:
            with self._stored(staged, row.id) as folder, self.database.transaction() as session:
                row.size_bytes = artifacts.size_bytes(folder)
                self._commit_trained(session, job, attempt, row, file, trained)
        except BitmillError:
            files.locate(file, self.settings).unlink(missing_ok=True)
            raise

    def _is_published(self, artifact_id: str) -> bool:
        with self.database.reading() as session:
            return ArtifactRepository(session).exists(artifact_id)

    def _commit_trained(
        self, session: Session, job: JobRow, attempt: int, row: ArtifactRow, file: FileRow, trained: Trained
    ) -> None:
        repository = ArtifactRepository(session)
        # Taken off the list meanwhile, under its own name where the job has another for it: served on it.
        if repository.find(trained.source["name"]) is None and Path(trained.source["path"]).is_dir():
            repository.add(_base_row(trained.source))
        repository.add(row)
        FileRepository(session).add(file)
        JobRepository(session).transition(
            job.id, JobState.SUCCEEDED, message=f"{row.name} is ready.", attempt=attempt,
            values=_outcome(row) | {"result": trained.result | {"result_files": [file.id]}},
        )  # fmt: skip

    def _events(self, job_id: str) -> list[JobEventRow]:
        with self.database.reading() as session:
            return JobRepository(session).events(job_id, limit=None)

    def _commit(self, session: Session, job: JobRow, attempt: int, row: ArtifactRow, *, ends_job: bool) -> None:
        repository = ArtifactRepository(session)
        row.name = _free_name(row, repository)
        repository.add(row)
        if not ends_job:
            JobRepository(session).require_held(job.id, attempt=attempt)
            return
        message = f"{row.name} is ready."
        JobRepository(session).transition(
            job.id, JobState.SUCCEEDED, message=message, attempt=attempt, values=_outcome(row)
        )


def _outcome(row: ArtifactRow) -> dict[str, Any]:
    """The columns of a job that succeeded with this artifact, which it made."""
    return {
        "artifact_id": row.id,
        "quantized_model": row.name,
        "quality": row.quality,
        "fraction": 1.0,
        "stage": "done",
        "actual": {
            "weights_bytes": round(row.bits_per_weight * row.parameter_count / 8),
            "peak_memory_bytes": row.peak_memory_bytes,
            "seconds": row.seconds,
        },
    }


def _key(job: JobRow, source: Message) -> str:
    spec, _ = parse_method(job.method)
    inputs = source["inputs"]
    # What was let through without a gate must not be reused by a job that asks for one.
    gate = {"gate": job.gate} if job.gate == Gate.OFF else {}
    method = {name: value for name, value in job.method.items() if name != "calibration" or "calibration" in inputs}
    return artifact_key(source["fingerprint"], method, versions_of(spec.packages, spec.revision), inputs | gate)


def _free_name(row: ArtifactRow, repository: ArtifactRepository) -> str:
    """The plain name, or, where another recipe has it already, the name with the start of the key."""
    return row.name if repository.find(row.name) is None else f"{row.name}-{row.key[:8]}"


def plain_name(job: JobRow, source_name: str) -> str:
    spec, params = parse_method(job.method)
    parts = [source_name, spec.label(params), job.suffix]
    return ":".join(part for part in parts if part)


def _base_row(source: Message) -> ArtifactRow:
    return ArtifactRow(
        id=new_id("artifact"), name=source["name"], kind=ArtifactKind.BASE,
        format=ArtifactFormat.SAFETENSORS, path=source["path"], source=None,
        source_fingerprint=source["fingerprint"], key=source["fingerprint"], method=None, suffix=None,
        versions={}, size_bytes=source["size_bytes"], parameter_count=source["parameter_count"],
        bits_per_weight=source["bits_per_weight"], tensor_types=source["tensor_types"],
        manifest_sha256=source["fingerprint"], quality=None, seconds=None, peak_memory_bytes=None,
        job_id=None, created_at=time.time(),
    )  # fmt: skip


def _quantized_row(job: JobRow, artifact_id: str, result: Result, size_bytes: int) -> ArtifactRow:
    source, made, proof = result.source, result.made, result.proof
    spec, _ = parse_method(job.method)
    report = QuantizationReport.model_validate(made["report"])
    return ArtifactRow(
        id=artifact_id, name=plain_name(job, source["name"]), kind=ArtifactKind.QUANTIZED,
        format=spec.output, path=artifact_id, source=source["name"],
        source_fingerprint=source["fingerprint"], key=_key(job, source), method=job.method,
        suffix=job.suffix, versions=versions_of(spec.packages, spec.revision), size_bytes=size_bytes,
        parameter_count=report.parameter_count, bits_per_weight=report.bits_per_weight,
        tensor_types=report.tensor_types, manifest_sha256=proof["manifest_sha256"],
        calibration=report.calibration.model_dump(mode="json") if report.calibration else None,
        quality=QualityCard.model_validate(proof["card"]).model_dump(mode="json"),
        seconds=made["seconds"], peak_memory_bytes=made["peak_memory_bytes"], job_id=job.id,
        created_at=time.time(),
    )  # fmt: skip


def _trained_row(job: JobRow, artifact_id: str, trained: Trained) -> ArtifactRow:
    source, made, report = trained.source, trained.made, trained.made["report"]
    return ArtifactRow(
        id=artifact_id, name=trained_name(job), kind=ArtifactKind.FINE_TUNED, format=made["format"], path=artifact_id,
        source=source["name"], source_fingerprint=source["fingerprint"], key=made["key"], method=made["method"],
        suffix=job.suffix, versions=made["versions"], size_bytes=0, parameter_count=report["parameter_count"],
        bits_per_weight=report["weight_bytes"] * 8 / report["parameter_count"], tensor_types=report["tensor_types"],
        manifest_sha256=trained.manifest_sha256, calibration=None, quality=None, seconds=made["seconds"],
        peak_memory_bytes=made["peak_memory_bytes"], job_id=job.id, created_at=time.time(),
    )  # fmt: skip


def trained_name(job: JobRow) -> str:
    """As OpenAI's: ft:model:organization:suffix:id, the suffix empty where none was given."""
    return f"{FINE_TUNED_PREFIX}{job.model}:bitmill:{job.suffix or ''}:{job.id[-8:]}"
