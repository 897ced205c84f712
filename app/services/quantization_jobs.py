"""Submitting quantization jobs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from app.domain.artifacts import Gate
from app.domain.jobs import JobKind, JobState, new_id
from app.domain.model_names import parse_model_name
from app.domain.quantization.catalog import dump_method, parse_method
from app.domain.quantization.spec import MethodParams, MethodSpec
from app.persistence.tables import JobRow
from app.services.job_service import JobService
from app.storage.artifacts import require_free_disk
from app.storage.checkpoints import inspect_checkpoint


@dataclass(frozen=True)
class NewJob:
    model: str
    method: dict[str, Any]
    suffix: str | None = None
    gate: Gate = Gate.ON
    metadata: dict[str, str] = field(default_factory=dict)


class QuantizationJobService(JobService):
    kind = JobKind.QUANTIZATION

    def submit(self, new: NewJob) -> JobRow:
        """Checks what can be checked now, stores the job, and only then rings for a worker."""
        spec, params = parse_method(new.method)
        self._inspect(new.model, spec, params)
        job = self._build(new, spec, params)
        return self.enqueue(job, {"method": job.method, "model": job.model})

    def _build(self, new: NewJob, spec: MethodSpec, params: MethodParams) -> JobRow:
        return JobRow(
            id=new_id("qjob"),
            kind=self.kind,
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
        folder = self.locate(parse_model_name(model))
        if folder is None or folder.is_file():
            return
        checkpoint = inspect_checkpoint(folder)
        spec.require_architecture(checkpoint.architecture, widened=self.settings.is_given(spec.widened_by))
        spec.require_groups(params, {name: info.shape for name, info in checkpoint.tensors.items()})
        needed = int(checkpoint.parameter_count * spec.bits(params) / 8)
        require_free_disk(self.settings.artifacts_folder, needed, self.settings.min_free_disk_bytes)
