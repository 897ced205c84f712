"""Submitting, showing and cancelling comparisons. Workers take them forward: see workers/comparisons.py."""

from __future__ import annotations

import time
from typing import Any

from app.domain.artifacts import ArtifactKind
from app.domain.comparison import ComparisonRequest
from app.domain.errors import BitmillError, IllegalTransition, InvalidParameter
from app.domain.evaluation import EvaluationRequest
from app.domain.files import uploads_in
from app.domain.hardware import Device
from app.domain.jobs import JobState, new_id
from app.domain.quantization.catalog import parse_method
from app.domain.quantization.spec import MethodSpec
from app.persistence.artifacts import ArtifactRepository
from app.persistence.comparisons import ComparisonRepository
from app.persistence.files import FileRepository
from app.persistence.jobs import JobRepository
from app.persistence.new_jobs import new_evaluation
from app.persistence.tables import ComparedRow, ComparisonRow
from app.persistence.unit_of_work import Database
from app.queue.dispatcher import Dispatcher
from app.services.comparison_view import view_comparison
from app.services.evaluations import EvaluationService
from app.services.job_service import cancel_once
from app.services.workers import WorkerService


class ComparisonService:
    def __init__(
        self, database: Database, dispatcher: Dispatcher, workers: WorkerService, evaluations: EvaluationService
    ) -> None:
        self.database = database
        self.dispatcher = dispatcher
        self.workers = workers
        self.evaluations = evaluations

    def submit(self, request: ComparisonRequest) -> dict[str, Any]:
        """Stores the comparison with its first job, the original's evaluation; the others follow from the sweep.

        A method that no worker has becomes a row that says so. Raises NotFound, InvalidRequest or
        NoWorkerAvailable.
        """
        self.evaluations.check(self._original(request))
        queue = self.workers.queue_on(request.device, param="device")
        comparison = ComparisonRow(
            id=new_id("cmp"), model=request.model, request=request.model_dump(mode="json", by_alias=True), queue=queue,
            created_at=time.time(),
        )  # fmt: skip
        methods = [self._row(comparison, number, method) for number, method in enumerate(request.chosen_methods)]
        first = new_evaluation(EvaluationRequest(model=request.model, **request.measuring), queue)
        original = ComparedRow(comparison_id=comparison.id, position=0, method=None, queue=queue)
        with self.database.transaction() as session:
            for file_id in sorted(uploads_in(comparison.request)):
                FileRepository(session).hold(file_id, param="dataset" if file_id == request.dataset else "methods")
            comparisons = ComparisonRepository(session)
            comparisons.add(comparison, [original, *methods])
            comparisons.start(original, "evaluation_job_id", first)
        self.dispatcher.send(first.id, queue)
        return self.get(comparison.id)

    def _original(self, request: ComparisonRequest) -> EvaluationRequest:
        with self.database.reading() as session:
            artifact = ArtifactRepository(session).find(request.model)
        if artifact is not None and artifact.kind == ArtifactKind.QUANTIZED:
            raise InvalidParameter(
                f"model {request.model!r} is quantized already; compare methods of its source {artifact.source!r}",
                param="model",
            )
        return EvaluationRequest(model=request.model, **request.measuring)

    def _row(self, comparison: ComparisonRow, number: int, method: dict[str, Any]) -> ComparedRow:
        spec = _known(number, method)
        row = ComparedRow(comparison_id=comparison.id, position=number + 1, method=method, queue=comparison.queue)
        try:
            row.queue = self._queue_of(spec, comparison)
        except BitmillError as error:
            row.settled = True
            row.error = error.to_dict()
        return row

    def _queue_of(self, spec: MethodSpec, comparison: ComparisonRow) -> str:
        """The comparison's own queue if the method runs there. Raises NoWorkerAvailable or MethodUnavailable."""
        chosen = self.workers.choose_queue(spec)
        takes = Device(comparison.queue) in spec.devices
        able = any(
            comparison.queue in worker.queues and worker.methods.get(spec.name, "") is None
            for worker in self.workers.recent()
        )
        return comparison.queue if takes and able else chosen

    def get(self, comparison_id: str) -> dict[str, Any]:
        """Raises ComparisonNotFound."""
        with self.database.reading() as session:
            return view_comparison(session, ComparisonRepository(session).get(comparison_id))

    def page(self, *, limit: int, after: str | None, model: str | None) -> tuple[list[dict[str, Any]], bool]:
        with self.database.reading() as session:
            found, has_more = ComparisonRepository(session).page(limit=limit, after=after, model=model)
            return [view_comparison(session, each) for each in found], has_more

    def cancel(self, comparison_id: str) -> dict[str, Any]:
        """Ends it and every job of it that has not ended. Twice is no error.

        Raises ComparisonNotFound, or IllegalTransition for one that ended otherwise.
        """
        with self.database.transaction() as session:
            comparisons = ComparisonRepository(session)
            comparison = comparisons.hold(comparison_id)
            if comparison.outcome not in (None, JobState.CANCELLED):
                raise IllegalTransition(f"comparison {comparison_id!r} has already {comparison.outcome}")
            comparisons.finish(comparison_id, JobState.CANCELLED)
            jobs = JobRepository(session)
            for row in comparisons.rows(comparison_id):
                for job_id in filter(None, (row.quantization_job_id, row.evaluation_job_id)):
                    if jobs.find(job_id) is not None:
                        cancel_once(jobs, job_id, JobState(jobs.hold(job_id).state))
        return self.get(comparison_id)


def _known(number: int, method: dict[str, Any]) -> MethodSpec:
    """Raises UnknownMethod or InvalidParameter, with the method's place in the list."""
    try:
        return parse_method(method)[0]
    except BitmillError as error:
        error.param = f"methods.{number}" + (error.param or "method").removeprefix("method")
        raise
