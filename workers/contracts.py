"""A job with a quality contract: candidates are made and measured until one meets every term.

All of it is one attempt. Each candidate becomes an ordinary artifact, and what was found of it is stored on the job
before the next one begins: an attempt that follows a lost one goes on from there. Imports no ML library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.domain.contract import (
    AUTO,
    MEMORY_MARGIN,
    SIZE_MARGIN,
    JobContract,
    broken_terms,
    figure,
    parse_auto,
    unknown_terms,
)
from app.domain.errors import (
    ContractUnsatisfiable,
    EngineFailed,
    EngineTimeout,
    IllegalTransition,
    IncompatibleModel,
    InsufficientMemory,
    JobFailed,
    JobProcessCrashed,
    MethodUnavailable,
    UnsupportedArchitecture,
)
from app.domain.estimates import ModelShape, estimate_artifact, estimate_loaded
from app.domain.evaluation import EngineFigures, EvaluationRequest, Metric
from app.domain.jobs import JobState
from app.domain.quantization.catalog import dump_method
from app.domain.quantization.fitting import fit_groups
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow, JobRow
from app.storage import artifacts
from app.storage.checkpoints import inspect_checkpoint
from app.storage.shapes import shape_of_checkpoint
from workers.attempt import Attempt
from workers.child import ChildCrashed
from workers.contract_figures import frontier, quality_of, serving_of, values_of

if TYPE_CHECKING:
    from workers.supervisor import Supervisor

# What of the job's progress finding the source takes.
RESOLVED: Final = 0.05
# What speaks against a candidate, and not against the model, the machine or the job. Where the job names its method,
# nothing else will be tried and the error is the job's own.
CANDIDATE_ERRORS: Final = (
    JobFailed,
    IncompatibleModel,
    UnsupportedArchitecture,
    InsufficientMemory,
    EngineFailed,
    EngineTimeout,
    MethodUnavailable,
)
Json = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    method: Json
    label: str
    predicted: Json


def keep_contract(supervisor: Supervisor, attempt: Attempt) -> None:
    """Ends the job with the first candidate that meets its contract. Raises ContractUnsatisfiable where none does."""
    ContractSearch(supervisor, attempt).run()


class ContractSearch:
    def __init__(self, supervisor: Supervisor, attempt: Attempt) -> None:
        self.supervisor = supervisor
        self.attempt = attempt
        self.contract = JobContract.model_validate((attempt.job.request or {})["contract"])
        self.searches = attempt.job.method["type"] == AUTO
        before: list[Json] = (attempt.job.result or {}).get("tried", [])
        # One that met the terms in an attempt which was lost before it could say so is measured again.
        self.tried = [entry for entry in before if not entry["meets_contract"]]
        self.skipped: list[Json] = []

    def run(self) -> None:
        candidates = self._plan(self._resolve())
        done = {_text(entry["method"]) for entry in self.tried}
        for number, candidate in enumerate(candidates):
            if _text(candidate.method) not in done and self._satisfied(candidate, number, len(candidates)):
                return
        raise ContractUnsatisfiable(
            f"{_counted(self.tried, self.skipped)} meets {_words(self.contract)}; `details` has what each one measured",
            param="contract",
            details=self._findings(),
        )

    def _resolve(self) -> ModelShape:
        attempt = replace(self.attempt, span=(0.0, RESOLVED))
        with self.supervisor.child(attempt, "resolve") as child:
            source = self.supervisor.wait_for(child, attempt, "done")["source"]
        self.supervisor.import_source(attempt, source)
        return shape_of_checkpoint(inspect_checkpoint(Path(source["path"])))

    def _plan(self, shape: ModelShape) -> list[Candidate]:
        """The smallest by prediction first. What the predictions rule out, or cannot be made, goes to `skipped`."""
        method = self.attempt.job.method
        methods = parse_auto(method).tried if method["type"] == AUTO else (method,)
        found = []
        for each in methods:
            try:
                candidate = self._candidate(each, shape)
                reason = self._ruled_out(candidate)
            except CANDIDATE_ERRORS as error:
                if not self.searches:
                    raise
                candidate, reason = Candidate(each, str(each["type"]), {}), error.message
            if reason is None:
                found.append(candidate)
            else:
                self.skipped.append({"method": candidate.method, "label": candidate.label, "reason": reason})
        return sorted(found, key=lambda candidate: int(candidate.predicted["weights_bytes"]))

    def _candidate(self, method: Json, shape: ModelShape) -> Candidate:
        settings = self.supervisor.settings
        spec, params = fit_groups(method, {name: tensor.shape for name, tensor in shape.tensors.items()})
        if spec.name not in self.supervisor.presence.methods:
            raise MethodUnavailable(f"this worker lacks the libraries of method {spec.name!r}")
        spec.require_architecture(shape.architecture, widened=settings.is_given(spec.widened_by))
        weights = estimate_artifact(spec, params, shape)
        loaded = estimate_loaded(
            spec, weights, shape, context_length=settings.serving_context_length, concurrency=1,
            on_gpu=self.attempt.job.queue == "gpu",
        )  # fmt: skip
        predicted = {"weights_bytes": weights.total_bytes, "memory_bytes": loaded.total_bytes}
        return Candidate(dump_method(spec, params), spec.label(params), predicted)

    def _ruled_out(self, candidate: Candidate) -> str | None:
        margins = (("size", "weights_bytes", SIZE_MARGIN), ("memory", "memory_bytes", MEMORY_MARGIN))
        for name, predicted, margin in margins:
            bound = getattr(self.contract, f"max_{name}_bytes")
            if bound is not None and candidate.predicted[predicted] > bound * margin:
                return f"max_{name}_bytes is {bound:,}, and {candidate.predicted[predicted]:,} are predicted"
        return None

    def _satisfied(self, candidate: Candidate, number: int, count: int) -> bool:
        """Makes and measures one candidate; ends the job if it meets every term."""
        share = (1.0 - RESOLVED) / count
        attempt = replace(
            self.attempt,
            job=_order(self.attempt.job, candidate.method, self.attempt.job.request),
            span=(RESOLVED + number * share, RESOLVED + (number + 1) * share),
            label=candidate.label,
        )
        entry: Json = {
            "method": candidate.method, "label": candidate.label, "predicted": candidate.predicted, "model": None,
            "measured": {}, "meets_contract": False, "broken_terms": [], "error": None,
        }  # fmt: skip
        row = None
        try:
            row, is_new = self._make(attempt)
            entry |= {"model": row.name} | self._judge(attempt, row)
        except CANDIDATE_ERRORS as error:
            if not self.searches:
                raise
            entry["error"] = error.to_dict()
        except ChildCrashed as crash:
            if not self.searches:
                raise
            entry["error"] = JobProcessCrashed(str(crash)).to_dict()
        finally:
            artifacts.remove(attempt.artifact)
        self._keep(entry)
        if row is None or not entry["meets_contract"]:
            return False
        self._succeed(row, is_new)
        return True

    def _make(self, attempt: Attempt) -> tuple[ArtifactRow, bool]:
        made = self.supervisor.make(replace(attempt, span=_part(attempt.span, 0.0, 0.8)))
        if isinstance(made, ArtifactRow):
            return made, False
        return self.supervisor.publish(attempt, made, ends_job=False)

    def _judge(self, attempt: Attempt, row: ArtifactRow) -> Json:
        """The engine is started only where nothing cheaper speaks against the candidate."""
        measured: Json = {"size_bytes": row.size_bytes} | quality_of(row)
        broken = broken_terms(self.contract, values_of(measured))
        if not broken and self.contract.needs_serving:
            measured |= self._serve(replace(attempt, span=_part(attempt.span, 0.8, 1.0)), row)
            broken = broken_terms(self.contract, values_of(measured))
        if not broken:
            broken = [f"{name} could not be measured" for name in unknown_terms(self.contract, values_of(measured))]
        return {"measured": measured, "broken_terms": broken, "meets_contract": not broken}

    def _serve(self, attempt: Attempt, row: ArtifactRow) -> Json:
        # What is timed is told below: a result's name may be longer than what jobs take.
        request = EvaluationRequest(model=attempt.job.model, metrics=(Metric.MEMORY, Metric.SPEED))
        timed = replace(attempt, job=_order(attempt.job, attempt.job.method, request.model_dump(mode="json")))
        folder = artifacts.locate(row, self.supervisor.settings)
        subject = {"name": row.name, "folder": str(folder), "format": row.format, "method": attempt.job.method["type"]}
        with self.supervisor.child(timed, "time") as child:
            child.send({"subject": subject})
            serving = self.supervisor.wait_for(child, timed, "done")["serving"]
        return serving_of(EngineFigures.model_validate(serving))

    def _keep(self, entry: Json) -> None:
        """Stored before anything else is tried. Raises LeaseLost or CancelRequested."""
        self.tried.append(entry)
        job, number = self.attempt.job, self.attempt.number
        verdict = "meets the contract" if entry["meets_contract"] else "; ".join(entry["broken_terms"])
        reason = entry["error"]["message"] if entry["error"] else verdict

        def write() -> None:
            with self.supervisor.database.transaction() as session:
                jobs = JobRepository(session)
                jobs.keep_result(job.id, self._findings(), attempt=number)
                jobs.add_event(job.id, "message", f"{entry['label']}: {reason}", entry)

        try:
            self.supervisor.record.to_the_end(write)
        except IllegalTransition as error:
            raise self.supervisor.record.why_not(self.attempt) from error

    def _findings(self) -> Json:
        return {
            "contract": self.contract.model_dump(mode="json", exclude_none=True),
            "tried": frontier(self.tried),
            "skipped": self.skipped,
        }

    def _succeed(self, row: ArtifactRow, is_new: bool) -> None:
        values = {
            "artifact_id": row.id, "quantized_model": row.name, "quality": row.quality, "fraction": 1.0,
            "stage": "done", "reused": not is_new, "result": self._findings(),
        }  # fmt: skip
        self.supervisor.record.finish(self.attempt, JobState.SUCCEEDED, f"{row.name} meets the contract.", values)


def _order(job: JobRow, method: Json, request: Json | None) -> JobRow:
    """The same job asked for something else. It is never stored."""
    return JobRow(
        id=job.id, kind=job.kind, queue=job.queue, model=job.model, method=method, suffix=job.suffix, gate=job.gate,
        request=request, predicted={},
    )  # fmt: skip


def _part(span: tuple[float, float], start: float, end: float) -> tuple[float, float]:
    width = span[1] - span[0]
    return span[0] + width * start, span[0] + width * end


def _text(method: Json) -> str:
    return json.dumps(method, sort_keys=True)


def _counted(tried: list[Json], skipped: list[Json]) -> str:
    ruled_out = f" ({len(skipped)} more were ruled out unmade)" if skipped else ""
    return f"none of {len(tried)} candidates{ruled_out}"


def _words(contract: JobContract) -> str:
    return ", ".join(f"{name} {figure(bound)}" for name, bound in contract.terms.items())
