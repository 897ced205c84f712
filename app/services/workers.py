"""What the machines of this installation can do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy.orm.attributes import set_committed_value

from app.domain.contract import AUTO
from app.domain.errors import MethodUnavailable, NoWorkerAvailable
from app.domain.hardware import Device
from app.domain.jobs import JobKind, JobState
from app.domain.quantization.catalog import CATALOG
from app.domain.quantization.spec import MethodSpec
from app.persistence.tables import JobRow, WorkerRow
from app.persistence.unit_of_work import Database
from app.persistence.workers import WorkerRepository
from app.settings import Settings

# A worker that missed this many heartbeats is not live.
MISSED_BEATS = 5


class WorkerService:
    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings

    def live(self) -> list[WorkerRow]:
        """Workers whose heartbeat is fresh and who have not said that they stopped."""
        fresh = time.time() - MISSED_BEATS * self.settings.heartbeat_seconds
        return [worker for worker in self._seen_since(fresh) if worker.stopped_at is None]

    def recent(self) -> Sequence[WorkerRow]:
        """Workers seen within the grace time: those that restart right now are among them."""
        return self._seen_since(time.time() - self.settings.worker_grace_seconds)

    def _seen_since(self, moment: float) -> Sequence[WorkerRow]:
        with self.database.reading() as session:
            return WorkerRepository(session).seen_since(moment)

    def choose_queue(self, spec: MethodSpec) -> str:
        """The queue for a method's job: gpu before cpu where both will do.

        Where no worker is there, one may yet come: cpu, since all of them take that. Raises NoWorkerAvailable or
        MethodUnavailable, with what is missing, where there are some that lack it.
        """
        devices = [device for device in (Device.GPU, Device.CPU) if device in spec.devices]
        return self._queue_of_able(spec.name, devices, param="method.type")

    def _queue_of_able(self, name: str, devices: Sequence[Device], *, param: str) -> str:
        workers = self.recent()
        queues = [device.value for device in devices]
        if not workers:
            return queues[-1]
        fitting = [worker for worker in workers if set(queues) & set(worker.queues)]
        if not fitting:
            raise _no_worker(queues, param)
        able = [worker for worker in fitting if worker.methods.get(name, "") is None]
        if not able:
            reason = fitting[0].methods.get(name) or "the worker's version does not know it"
            raise MethodUnavailable(f"{name!r} cannot run on any worker: {reason}", param=param)
        return next(queue for queue in queues if any(queue in worker.queues for worker in able))

    def training_queue(self, adapter: str) -> str:
        """The queue for a training job: gpu where a worker has one. Raises NoWorkerAvailable or MethodUnavailable."""
        return self._queue_of_able(adapter, [Device.GPU, Device.CPU], param="bitmill.adapter")

    def any_queue(self) -> str:
        """The queue for what every worker can do: gpu where one has it."""
        taken = {queue for worker in self.recent() for queue in worker.queues}
        return (Device.GPU if Device.GPU in taken else Device.CPU).value

    def queue_on(self, device: str, *, param: str) -> str:
        """The queue of a device; `auto` leaves the choice. Raises NoWorkerAvailable where those that are there lack it.

        Where none is there, one may yet come.
        """
        if device == AUTO:
            return self.any_queue()
        workers = self.recent()
        if workers and not any(device in worker.queues for worker in workers):
            raise _no_worker([device], param)
        return device

    def tell_what_they_wait_for(self, jobs: Iterable[JobRow]) -> None:
        """Gives each queued job that no live worker can take a stage that says what such a worker would have."""
        queued = [job for job in jobs if job.state == JobState.QUEUED]
        workers = self.live() if queued else []
        for job in queued:
            if not any(_can_take(worker, job) for worker in workers):
                # As it is shown: no row changes.
                set_committed_value(job, "stage", _waiting(job))

    def catalog(self) -> list[dict[str, Any]]:
        """Every method with its JSON schema, and whether a live worker can run it."""
        workers = self.live()
        return [_describe(spec, workers) for spec in CATALOG.values()]


def _no_worker(queues: Sequence[str], param: str) -> NoWorkerAvailable:
    return NoWorkerAvailable(
        f"no worker takes jobs from queue {' or '.join(queues)}; start `bitmill worker` on a machine that has it",
        param=param,
    )


def _can_take(worker: WorkerRow, job: JobRow) -> bool:
    method = _library(job)
    return job.queue in worker.queues and (method is None or worker.methods.get(method, "") is None)


def _library(job: JobRow) -> str | None:
    """The method whose libraries a job needs; None where every worker has what it needs."""
    method = None if job.kind == JobKind.EVALUATION else str(job.method["type"])
    return None if method == AUTO else method


def _waiting(job: JobRow) -> str:
    method = _library(job)
    wanted = ["a GPU"] if job.queue == Device.GPU else []
    wanted += [f"the method {method}"] if method is not None else []
    return "waiting for a worker" + (f" with {' and '.join(wanted)}" if wanted else "")


def _describe(spec: MethodSpec, workers: list[WorkerRow]) -> dict[str, Any]:
    answers = [worker.methods[spec.name] for worker in workers if spec.name in worker.methods]
    available = any(answer is None for answer in answers)
    reason = next((answer for answer in answers if answer), "no worker is live; start one with `bitmill worker`")
    return {
        "object": "quantization.method",
        "id": spec.name,
        "summary": spec.summary,
        "output": spec.output.value,
        "devices": sorted(device.value for device in spec.devices),
        "needs_calibration": spec.needs_calibration,
        "needs_training": spec.needs_training,
        "streams": spec.streams,
        "architectures": sorted(spec.architectures) if spec.architectures else None,
        "available": available,
        "unavailable_reason": None if available else reason,
        "parameters": spec.params.model_json_schema(),
    }
