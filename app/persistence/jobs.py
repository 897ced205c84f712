"""Jobs and their events. `transition` is the only code that writes a job's state."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, func, or_, select, update
from sqlalchemy.orm import Session

from app.domain.errors import IllegalTransition, JobNotFound
from app.domain.jobs import FINAL_STATES, STILL_RUNNING, JobKind, JobState, sources_of
from app.persistence.tables import JobEventRow, JobRow
from app.persistence.texts import storable

ACTIVE = tuple(sorted(STILL_RUNNING))
NO_METADATA: Mapping[str, str] = MappingProxyType({})
# As many of a model's evaluations as are looked at.
MOST_EVALUATIONS = 20
LISTED_AT = {
    JobKind.QUANTIZATION: "/v1/quantization/jobs",
    JobKind.EVALUATION: "/v1/evaluations",
    JobKind.FINE_TUNING: "/v1/fine_tuning/jobs",
}


class JobRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, job: JobRow) -> None:
        """Stores a new queued job with its first event."""
        self.session.add(job)
        self.session.flush()
        self.add_event(job.id, "state", "The job is queued.", {"status": JobState.QUEUED})

    def find(self, job_id: str) -> JobRow | None:
        return self.session.get(JobRow, job_id, populate_existing=True)

    def get(self, job_id: str, kind: JobKind | None = None) -> JobRow:
        """Of this kind, if one is given. Raises JobNotFound."""
        row = self.find(job_id)
        if row is None or (kind is not None and row.kind != kind):
            route = LISTED_AT[kind or JobKind.QUANTIZATION]
            raise JobNotFound(f"no job {job_id!r}; GET {route} lists them", param="id")
        return row

    def hold(self, job_id: str, kind: JobKind | None = None) -> JobRow:
        """Like `get`, but nobody else changes it until this transaction ends."""
        query = select(JobRow.id).where(JobRow.id == job_id).with_for_update()
        self.session.execute(query)
        return self.get(job_id, kind)

    def page(
        self, *, kind: JobKind, limit: int, after: str | None, states: Sequence[JobState], model: str | None,
        metadata: Mapping[str, str] = NO_METADATA,
    ) -> tuple[list[JobRow], bool]:  # fmt: skip
        """Up to `limit` jobs, newest first, and whether more follow. Raises JobNotFound for `after`."""
        query = select(JobRow).where(JobRow.kind == kind)
        query = query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)
        if states:
            query = query.where(JobRow.state.in_(states))
        if model is not None:
            query = query.where(JobRow.model == model)
        for key, value in metadata.items():
            query = query.where(self._has_metadata(key, value))
        if after is not None:
            last = self.get(after, kind)
            same_time = and_(JobRow.created_at == last.created_at, JobRow.id < last.id)
            query = query.where(or_(JobRow.created_at < last.created_at, same_time))
        rows = list(self.session.scalars(query))
        return rows[:limit], len(rows) > limit

    def _has_metadata(self, key: str, value: str) -> ColumnElement[bool]:
        if self.session.get_bind().dialect.name != "sqlite":
            same: ColumnElement[bool] = JobRow.user_metadata[key].as_string() == value
            return same
        # SQLite's paths find neither quotes nor letters beyond ASCII, which stand escaped in the column.
        pair = func.json_each(JobRow.user_metadata).table_valued("key", "value")
        return select(pair.c.key).where(pair.c.key == key, pair.c.value == value).correlate(JobRow).exists()

    def transition(
        self,
        job_id: str,
        target: JobState,
        *,
        message: str,
        sources: frozenset[JobState] | None = None,
        attempt: int | None = None,
        level: str = "info",
        values: dict[str, Any] | None = None,
    ) -> None:
        """Moves a job to `target` and records the event, or raises IllegalTransition and changes nothing.

        `sources` narrows the states it may come from; `attempt` is the caller's fencing token.
        """
        allowed = sources_of(target) & sources if sources is not None else sources_of(target)
        guard = [JobRow.id == job_id, JobRow.state.in_(allowed)]
        if attempt is not None:
            guard.append(JobRow.attempt == attempt)
        columns = dict(values or {}, state=target)
        if "error" in columns:
            columns["error"] = storable(columns["error"])
        if target in FINAL_STATES:
            columns |= {"finished_at": time.time(), "lease_expires_at": None, "eta_seconds": None}
        changed = self.session.execute(update(JobRow).where(*guard).values(**columns))
        if changed.rowcount == 0:  # type: ignore[attr-defined]  # an UPDATE's result is a CursorResult
            raise self._illegal(job_id, target)
        self.add_event(job_id, "state", message, {"status": target}, level=level)

    def _illegal(self, job_id: str, target: JobState) -> IllegalTransition:
        row = self.get(job_id)
        return IllegalTransition(f"job {job_id!r} is {row.state} (attempt {row.attempt}); it cannot become {target}")

    def claim(self, job_id: str, *, worker_id: str, lease_seconds: float) -> int:
        """Takes a queued job for a worker and returns the attempt's number, or raises IllegalTransition."""
        seen = self.get(job_id)
        attempt = seen.attempt + 1
        now = time.time()
        self.transition(
            job_id,
            JobState.RUNNING,
            message=f"Worker {worker_id} began attempt {attempt}.",
            attempt=seen.attempt,
            values={
                "attempt": attempt,
                "worker_id": worker_id,
                "lease_expires_at": now + lease_seconds,
                "started_at": func.coalesce(JobRow.started_at, now),
                "stage": "starting",
                "fraction": 0.0,
            },
        )
        return attempt

    def renew(self, job_id: str, *, attempt: int, lease_seconds: float) -> JobState | None:
        """Prolongs a lease and tells the state; None means that the lease was lost to another attempt."""
        guard = (JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state.in_(ACTIVE))
        values = {"lease_expires_at": time.time() + lease_seconds}
        changed = self.session.execute(update(JobRow).where(*guard).values(**values))
        if changed.rowcount == 0:  # type: ignore[attr-defined]  # an UPDATE's result is a CursorResult
            return None
        return JobState(self.get(job_id).state)

    def require_held(self, job_id: str, *, attempt: int) -> None:
        """Raises IllegalTransition unless this attempt is at work on the job and may go on until the commit."""
        guard = (JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state == JobState.RUNNING)
        changed = self.session.execute(update(JobRow).where(*guard).values(attempt=attempt))
        if changed.rowcount == 0:  # type: ignore[attr-defined]  # an UPDATE's result is a CursorResult
            raise self._illegal(job_id, JobState.SUCCEEDED)

    def keep_prediction(self, job_id: str, predicted: dict[str, Any]) -> None:
        self.session.execute(update(JobRow).where(JobRow.id == job_id).values(predicted=predicted))

    def keep_result(self, job_id: str, result: dict[str, Any], *, attempt: int) -> None:
        """Stores what a running attempt has found so far. Raises IllegalTransition if the job is not its any more."""
        self.require_held(job_id, attempt=attempt)
        self.session.execute(update(JobRow).where(JobRow.id == job_id).values(result=result))

    def state_for(self, job_id: str, attempt: int) -> JobState | None:
        """The state as this attempt may know it; None once the job belongs to another attempt."""
        query = select(JobRow.state).where(JobRow.id == job_id, JobRow.attempt == attempt)
        state = self.session.scalar(query)
        return JobState(state) if state is not None else None

    def progress(
        self, job_id: str, *, attempt: int, fraction: float, stage: str, eta_seconds: float | None,
        metrics: dict[str, Any],
    ) -> None:  # fmt: skip
        """Records how far a running attempt is; a stale attempt's report changes nothing."""
        guard = (JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state == JobState.RUNNING)
        values = {"fraction": fraction, "stage": storable(stage), "eta_seconds": eta_seconds}
        changed = self.session.execute(update(JobRow).where(*guard).values(**values))
        if changed.rowcount:  # type: ignore[attr-defined]  # an UPDATE's result is a CursorResult
            data = {"stage": stage, "fraction": fraction, "eta_seconds": eta_seconds, **metrics}
            self.add_event(job_id, "progress", f"{stage}: {fraction:.0%}", data)

    def record(self, job_id: str, *, attempt: int, type_: str, message: str, data: dict[str, Any]) -> None:
        """Adds what a running attempt found on its way; a stale attempt's adds nothing."""
        if self.state_for(job_id, attempt) in ACTIVE:
            self.add_event(job_id, type_, message, data)

    def add_event(self, job_id: str, type_: str, message: str, data: dict[str, Any], *, level: str = "info") -> None:
        event = JobEventRow(
            job_id=job_id, created_at=time.time(), type=type_, level=level, message=storable(message),
            data=storable(data),
        )  # fmt: skip
        self.session.add(event)
        self.session.flush()

    def events(self, job_id: str, *, after: int = 0, limit: int | None = 1000) -> list[JobEventRow]:
        """Events with a number above `after`, oldest first; all of them where `limit` is None."""
        query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.id > after)
        return list(self.session.scalars(query.order_by(JobEventRow.id).limit(limit)))

    def newest_events(
        self, job_id: str, *, before: int | None, limit: int, type_: str | None = None
    ) -> list[JobEventRow]:
        """Events with a number below `before`, newest first."""
        query = select(JobEventRow).where(JobEventRow.job_id == job_id)
        if before is not None:
            query = query.where(JobEventRow.id < before)
        if type_ is not None:
            query = query.where(JobEventRow.type == type_)
        return list(self.session.scalars(query.order_by(JobEventRow.id.desc()).limit(limit)))

    def expired(self, now: float) -> list[JobRow]:
        """Active jobs whose lease has run out."""
        query = select(JobRow).where(JobRow.state.in_(ACTIVE), JobRow.lease_expires_at < now)
        return list(self.session.scalars(query))

    def held_by(self, worker_id: str) -> list[JobRow]:
        query = select(JobRow).where(JobRow.state.in_(ACTIVE), JobRow.worker_id == worker_id)
        return list(self.session.scalars(query))

    def unclaimed(self, queues: Sequence[str], methods: Sequence[str], *, dispatched_before: float) -> JobRow | None:
        """The oldest queued job whose message, if any was sent, nobody has answered.

        One that quantizes or trains must do so in one of these ways; every worker can evaluate.
        """
        able = or_(JobRow.kind == JobKind.EVALUATION, JobRow.method["type"].as_string().in_(methods))
        silent = or_(JobRow.dispatched_at.is_(None), JobRow.dispatched_at < dispatched_before)
        query = select(JobRow).where(JobRow.state == JobState.QUEUED, JobRow.queue.in_(queues), able, silent)
        return self.session.scalar(query.order_by(JobRow.created_at).limit(1))

    def mark_dispatched(self, job_id: str) -> None:
        self.session.execute(update(JobRow).where(JobRow.id == job_id).values(dispatched_at=time.time()))

    def counts(self) -> dict[str, int]:
        query = select(JobRow.state, func.count()).group_by(JobRow.state)
        return {state: int(count) for state, count in self.session.execute(query)}

    def oldest_queued_at(self) -> float | None:
        return self.session.scalar(select(func.min(JobRow.created_at)).where(JobRow.state == JobState.QUEUED))

    def evaluations_of(self, model: str) -> Sequence[JobRow]:
        """The model's evaluations that succeeded, newest first."""
        query = select(JobRow).where(
            JobRow.kind == JobKind.EVALUATION, JobRow.model == model, JobRow.state == JobState.SUCCEEDED
        )
        return list(self.session.scalars(query.order_by(JobRow.created_at.desc()).limit(MOST_EVALUATIONS)))

    def active_on_model(self, model: str) -> list[JobRow]:
        needed = or_(JobRow.model == model, JobRow.request["reference"].as_string() == model)
        query = select(JobRow).where(needed, JobRow.state.not_in(FINAL_STATES))
        return list(self.session.scalars(query))

    def active_on_file(self, file_id: str) -> list[JobRow]:
        """Unfinished jobs whose model, or any parameter of whose method or request, is an uploaded file."""
        # The id is random enough that its text stands in a method's JSON for nothing else.
        quoted = f'"{file_id}"'
        named = [cast(column, Text).contains(quoted, autoescape=True) for column in (JobRow.method, JobRow.request)]
        query = select(JobRow).where(or_(JobRow.model == file_id, *named), JobRow.state.not_in(FINAL_STATES))
        return list(self.session.scalars(query))
