"""Submitting evaluations: what a model costs and what it is worth, measured on a worker."""

from __future__ import annotations

from app.domain.artifacts import ArtifactKind
from app.domain.errors import BitmillError, InvalidParameter
from app.domain.evaluation import EvaluationRequest
from app.domain.files import FILE_ID, FilePurpose, require_purpose
from app.domain.jobs import JobKind
from app.domain.model_names import parse_model_name
from app.persistence.artifacts import ArtifactRepository
from app.persistence.files import FileRepository
from app.persistence.new_jobs import new_evaluation
from app.persistence.tables import ArtifactRow, JobRow
from app.services.job_service import JobService
from app.storage.checkpoints import inspect_checkpoint


class EvaluationService(JobService):
    kind = JobKind.EVALUATION

    def submit(self, request: EvaluationRequest) -> JobRow:
        """Checks what can be checked now, stores the job, and only then rings for a worker.

        Raises NotFound or InvalidRequest for a model, reference or dataset that cannot be read.
        """
        checked = self.check(request)
        job = new_evaluation(checked, self.workers.any_queue())
        return self.enqueue(job, {"dataset": checked.dataset, "reference": checked.reference, "model": checked.model})

    def check(self, request: EvaluationRequest) -> EvaluationRequest:
        """The request with its reference. Raises NotFound or InvalidRequest."""
        artifact = self._find(request.model)
        if artifact is None or artifact.source is None:
            self._inspect(request.model, "model")
        reference = request.reference or (artifact.source if artifact else None)
        if reference is not None:
            self._require_original(reference)
        self._require_dataset(request.dataset)
        return request.model_copy(update={"reference": reference})

    def _find(self, name: str) -> ArtifactRow | None:
        with self.database.reading() as session:
            return ArtifactRepository(session).find(name)

    def _require_original(self, name: str) -> None:
        found = self._find(name)
        if found is not None and found.kind == ArtifactKind.QUANTIZED:
            raise InvalidParameter(
                f"reference {name!r} is itself quantized; give an original, such as its source {found.source!r}",
                param="reference",
            )
        self._inspect(name, "reference")

    def _inspect(self, name: str, param: str) -> None:
        """A source on this machine's disk is looked at before anything is queued; others by the worker."""
        try:
            folder = self.locate(parse_model_name(name))
            if folder is not None and not folder.is_file():
                inspect_checkpoint(folder)
        except BitmillError as error:
            error.param = param
            raise

    def _require_dataset(self, dataset: str) -> None:
        if not FILE_ID.fullmatch(dataset):
            return
        with self.database.reading() as session:
            file = FileRepository(session).get(dataset, param="dataset")
        require_purpose(file.id, file.purpose, FilePurpose.EVALUATION, param="dataset")
