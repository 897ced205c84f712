"""Submitting quantization jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from app.domain.artifacts import Gate
from app.domain.contract import AUTO, Contract, JobContract, parse_auto
from app.domain.errors import InvalidParameter
from app.domain.hardware import Device
from app.domain.jobs import JobKind
from app.domain.model_names import parse_model_name
from app.domain.quantization.catalog import dump_method, parse_method
from app.domain.quantization.spec import MethodParams, MethodSpec
from app.persistence.new_jobs import new_quantization
from app.persistence.predictions import predict_job
from app.persistence.tables import JobRow
from app.services.job_service import JobService
from app.storage.artifacts import require_free_disk
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from app.storage.shapes import shape_of_checkpoint


@dataclass(frozen=True)
class NewJob:
    model: str
    method: dict[str, Any]
    suffix: str | None = None
    gate: Gate = Gate.ON
    contract: JobContract | None = None
    metadata: dict[str, str] = field(default_factory=dict)


class QuantizationJobService(JobService):
    kind = JobKind.QUANTIZATION

    def submit(self, new: NewJob) -> JobRow:
        """Checks what can be checked now, stores the job, and only then rings for a worker."""
        job = self._search(new) if new.method.get("type") == AUTO else self._single(new)
        return self.enqueue(job, {"method": job.method, "model": job.model})

    def _search(self, new: NewJob) -> JobRow:
        method = parse_auto(new.method)
        if new.contract is None:
            raise InvalidParameter(
                f"method 'auto' searches for what meets a contract; give `contract` with at least one of "
                f"{', '.join(Contract.model_fields)}",
                param="contract",
            )
        folder = self.locate(parse_model_name(new.model))
        if folder is not None and not folder.is_file():
            inspect_checkpoint(folder)
        queue = self.workers.queue_on(new.contract.device, param="contract.device")
        return self._build(new, method.model_dump(mode="json"), queue)

    def _single(self, new: NewJob) -> JobRow:
        spec, params = parse_method(new.method)
        checkpoint = self._inspect(new.model, spec, params)
        job = self._build(new, dump_method(spec, params), self._queue(new, spec))
        if checkpoint is not None:
            with self.database.reading() as session:
                job.predicted = predict_job(session, job.method, shape_of_checkpoint(checkpoint))
        return job

    def _queue(self, new: NewJob, spec: MethodSpec) -> str:
        device = new.contract.device if new.contract is not None else AUTO
        chosen = self.workers.choose_queue(spec)
        if device in (AUTO, chosen):
            return chosen
        if Device(device) not in spec.devices:
            devices = " or ".join(sorted(each.value for each in spec.devices))
            raise InvalidParameter(f"method {spec.name!r} runs on {devices}, not on {device}", param="contract.device")
        return self.workers.queue_on(device, param="contract.device")

    def _build(self, new: NewJob, method: dict[str, Any], queue: str) -> JobRow:
        contract = new.contract.model_dump(mode="json") if new.contract is not None else None
        return new_quantization(
            new.model, method, queue, suffix=new.suffix, gate=new.gate, metadata=new.metadata,
            request={"contract": contract} if contract is not None else None,
        )  # fmt: skip

    def _inspect(self, model: str, spec: MethodSpec, params: MethodParams) -> Checkpoint | None:
        """A source on this machine's disk is looked at before anything is queued; others by the worker."""
        folder = self.locate(parse_model_name(model))
        if folder is None or folder.is_file():
            return None
        checkpoint = inspect_checkpoint(folder)
        spec.require_architecture(checkpoint.architecture, widened=self.settings.is_given(spec.widened_by))
        spec.require_groups(params, {name: info.shape for name, info in checkpoint.tensors.items()})
        needed = int(checkpoint.parameter_count * spec.bits(params) / 8)
        require_free_disk(self.settings.artifacts_folder, needed, self.settings.min_free_disk_bytes)
        return checkpoint
