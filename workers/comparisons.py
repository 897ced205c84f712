"""Takes comparisons forward: makes the jobs that their rows wait for, and ends what has nothing left to do.

Every worker's sweep does this. A comparison is held while it is looked at, and a job is stored together with its id
on the row that it belongs to: whoever dies in between has made nothing, and nobody makes it twice.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.domain.artifacts import ArtifactKind
from app.domain.comparison import ComparisonRequest
from app.domain.errors import BitmillError
from app.domain.evaluation import EvaluationRequest
from app.domain.jobs import FINAL_STATES, JobState
from app.domain.model_names import parse_model_name
from app.domain.quantization.catalog import dump_method
from app.domain.quantization.fitting import fit_groups
from app.persistence.artifacts import ArtifactRepository
from app.persistence.comparisons import ComparisonRepository
from app.persistence.jobs import JobRepository
from app.persistence.new_jobs import new_evaluation, new_quantization
from app.persistence.tables import ComparedRow, ComparisonRow, JobRow
from app.persistence.unit_of_work import Database
from app.queue.dispatcher import Dispatcher
from app.settings import Settings
from app.storage.artifacts import locate
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from app.storage.sources import locate_local, trained_folder
from workers.sources.folder import canonical_name

log = logging.getLogger(__name__)


def advance_comparisons(database: Database, settings: Settings, dispatcher: Dispatcher) -> None:
    """One step of every open comparison. Jobs are rung for once their rows are committed."""
    with database.reading() as session:
        waiting = ComparisonRepository(session).open()
    for comparison_id in waiting:
        try:
            _advance(comparison_id, database, settings, dispatcher)
        except SQLAlchemyError:
            raise
        except Exception:
            # One that this worker's version cannot read must end neither the heartbeat nor the other comparisons.
            log.exception("comparison %s could not be taken forward", comparison_id)


def _advance(comparison_id: str, database: Database, settings: Settings, dispatcher: Dispatcher) -> None:
    with database.transaction() as session:
        started = Advance(session, settings).run(comparison_id)
    for job in started:
        dispatcher.send(job.id, job.queue)


class Advance:
    """One comparison's step, inside one transaction."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self.session = session
        self.settings = settings
        self.comparisons = ComparisonRepository(session)
        self.jobs = JobRepository(session)
        self.started: list[JobRow] = []
        self._source: Checkpoint | None = None

    def run(self, comparison_id: str) -> list[JobRow]:
        """The jobs that it started."""
        comparison = self.comparisons.hold(comparison_id)
        if comparison.outcome is not None:  # ended since it was listed
            return []
        for row in self.comparisons.rows(comparison_id):
            if not row.settled:
                self._advance(comparison, row)
        rows = self.comparisons.rows(comparison_id)
        if all(row.settled for row in rows):
            self._finish(comparison, rows)
        return self.started

    def _advance(self, comparison: ComparisonRow, row: ComparedRow) -> None:
        if row.evaluation_job_id is not None:
            self._after_evaluation(row, self.jobs.find(row.evaluation_job_id))
        elif row.quantization_job_id is not None:
            self._after_quantization(comparison, row, self.jobs.find(row.quantization_job_id))
        else:
            self._quantize(comparison, row)

    def _quantize(self, comparison: ComparisonRow, row: ComparedRow) -> None:
        try:
            checkpoint = self._checkpoint(comparison)
            if checkpoint is None:
                return
            method = fit_method(row.method or {}, checkpoint, self.settings)
        except BitmillError as error:
            self.comparisons.settle(row, error.to_dict())
            return
        except OSError as error:  # a folder that this user may not read, or that went while it was read
            reason = BitmillError(f"the original could not be read ({error}); make it readable, then compare again")
            self.comparisons.settle(row, reason.to_dict())
            return
        job = new_quantization(comparison.model, method, row.queue)
        if self.comparisons.start(row, "quantization_job_id", job, method=method):
            self.started.append(job)

    def _checkpoint(self, comparison: ComparisonRow) -> Checkpoint | None:
        """None while the original's evaluation, which fetches and unpacks it, may still bring it.

        Raises what that evaluation failed with.
        """
        if self._source is None and (folder := find_source(self.session, comparison.model, self.settings)):
            self._source = inspect_checkpoint(folder)
        if self._source is not None:
            return self._source
        original = self.jobs.find(self.comparisons.rows(comparison.id)[0].evaluation_job_id or "")
        if original is not None and JobState(original.state) not in FINAL_STATES:
            return None
        reason = ((original.error if original else None) or {}).get("message", "its evaluation is gone")
        raise BitmillError(f"the original could not be read: {reason}")

    def _after_quantization(self, comparison: ComparisonRow, row: ComparedRow, job: JobRow | None) -> None:
        if job is not None and JobState(job.state) not in FINAL_STATES:
            return
        if job is None or job.state != JobState.SUCCEEDED or job.quantized_model is None:
            self.comparisons.settle(row, _why(job, "quantization"))
            return
        request = ComparisonRequest.model_validate(comparison.request)
        reference = self._reference(job, comparison)
        try:
            wanted = EvaluationRequest(model=job.quantized_model, reference=reference, **request.measuring)
        except ValidationError as error:  # a name that is longer than jobs take
            reason = BitmillError(f"{job.quantized_model!r} cannot be evaluated: {error.errors()[0]['msg']}")
            self.comparisons.settle(row, reason.to_dict())
            return
        evaluation = new_evaluation(wanted, comparison.queue)
        if self.comparisons.start(row, "evaluation_job_id", evaluation):
            self.started.append(evaluation)

    def _reference(self, job: JobRow, comparison: ComparisonRow) -> str:
        artifact = ArtifactRepository(self.session).find(job.quantized_model or "")
        return (artifact.source if artifact else None) or comparison.model

    def _after_evaluation(self, row: ComparedRow, job: JobRow | None) -> None:
        if job is None or JobState(job.state) in FINAL_STATES:
            succeeded = job is not None and job.state == JobState.SUCCEEDED
            self.comparisons.settle(row, None if succeeded else _why(job, "evaluation"))

    def _finish(self, comparison: ComparisonRow, rows: list[ComparedRow]) -> None:
        measured = [row for row in rows if row.error is None and row.method is not None]
        outcome = JobState.SUCCEEDED if measured else JobState.FAILED
        self.comparisons.finish(comparison.id, outcome)
        log.info("comparison %s %s: %s of %s methods measured", comparison.id, outcome, len(measured), len(rows) - 1)


def fit_method(method: dict[str, Any], checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    """With the group size for this model. Raises IncompatibleModel or UnsupportedArchitecture."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    spec, params = fit_groups(method, shapes)
    spec.require_architecture(checkpoint.architecture, widened=settings.is_given(spec.widened_by))
    spec.require_groups(params, shapes)
    return dump_method(spec, params)


def find_source(session: Session, model: str, settings: Settings) -> Path | None:
    """The checkpoint of an original that is on this disk already, unpacked if it must be."""
    found = locate_local(parse_model_name(model), settings)
    if found is not None and found.is_dir():
        return found
    # A job that read it listed it: a GGUF file under the name that all its paths share.
    row = ArtifactRepository(session).find(model if found is None else canonical_name(found, settings))
    if row is None or row.kind == ArtifactKind.QUANTIZED:
        return None
    folder = trained_folder(row, settings) if row.kind == ArtifactKind.FINE_TUNED else locate(row, settings)
    return folder if folder is not None and folder.is_dir() else None


def _why(job: JobRow | None, kind: str) -> dict[str, Any]:
    if job is None:
        return BitmillError(f"its {kind} job is gone; compare again").to_dict()
    return job.error or BitmillError(f"its {kind} job {job.id} was cancelled").to_dict()
