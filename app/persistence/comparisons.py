"""Comparisons and their rows. Whoever changes one holds it first, so that its jobs are made once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Text, and_, cast, or_, select, update
from sqlalchemy.orm import Session

from app.domain.errors import ComparisonNotFound
from app.persistence.jobs import JobRepository
from app.persistence.tables import ComparedRow, ComparisonRow, JobRow

Child = Literal["quantization_job_id", "evaluation_job_id"]


class ComparisonRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, comparison: ComparisonRow, rows: Sequence[ComparedRow]) -> None:
        self.session.add(comparison)
        self.session.flush()
        self.session.add_all(rows)
        self.session.flush()

    def get(self, comparison_id: str) -> ComparisonRow:
        """Raises ComparisonNotFound."""
        return _found(self.session.get(ComparisonRow, comparison_id, populate_existing=True), comparison_id)

    def hold(self, comparison_id: str) -> ComparisonRow:
        """Like `get`, but nobody else can hold it until this transaction ends."""
        query = select(ComparisonRow).where(ComparisonRow.id == comparison_id).with_for_update()
        return _found(self.session.scalar(query.execution_options(populate_existing=True)), comparison_id)

    def rows(self, comparison_id: str) -> list[ComparedRow]:
        """In the order in which they were asked for, the original first."""
        query = select(ComparedRow).where(ComparedRow.comparison_id == comparison_id).order_by(ComparedRow.position)
        return list(self.session.scalars(query.execution_options(populate_existing=True)))

    def page(self, *, limit: int, after: str | None, model: str | None) -> tuple[list[ComparisonRow], bool]:
        """Up to `limit` comparisons, newest first, and whether more follow. Raises ComparisonNotFound for `after`."""
        query = select(ComparisonRow).order_by(ComparisonRow.created_at.desc(), ComparisonRow.id.desc())
        if model is not None:
            query = query.where(ComparisonRow.model == model)
        if after is not None:
            last = self.get(after)
            same_time = and_(ComparisonRow.created_at == last.created_at, ComparisonRow.id < last.id)
            query = query.where(or_(ComparisonRow.created_at < last.created_at, same_time))
        found = list(self.session.scalars(query.limit(limit + 1)))
        return found[:limit], len(found) > limit

    def open(self) -> list[str]:
        """The ids of those that have something left to do, oldest first."""
        query = select(ComparisonRow.id).where(ComparisonRow.outcome.is_(None)).order_by(ComparisonRow.created_at)
        return list(self.session.scalars(query))

    def open_on_model(self, model: str) -> list[str]:
        query = select(ComparisonRow.id).where(ComparisonRow.model == model, ComparisonRow.outcome.is_(None))
        return list(self.session.scalars(query))

    def open_on_file(self, file_id: str) -> list[str]:
        """Those whose model, data set or methods name an uploaded file."""
        named = cast(ComparisonRow.request, Text).contains(f'"{file_id}"', autoescape=True)
        return list(self.session.scalars(select(ComparisonRow.id).where(named, ComparisonRow.outcome.is_(None))))

    def start(self, row: ComparedRow, child: Child, job: JobRow, *, method: dict[str, Any] | None = None) -> bool:
        """Stores a job and its id on the row, unless the row has one already or is settled: then nothing happens."""
        column = getattr(ComparedRow, child)
        values: dict[str, Any] = {child: job.id} | ({"method": method} if method is not None else {})
        if not self._change(row, values, column.is_(None)):
            return False
        JobRepository(self.session).add(job)
        return True

    def settle(self, row: ComparedRow, error: dict[str, Any] | None = None) -> None:
        """Ends a row: measured, or with the reason why it was not."""
        self._change(row, {"settled": True, "error": error})

    def _change(self, row: ComparedRow, values: dict[str, Any], *guards: Any) -> bool:
        same = (ComparedRow.comparison_id == row.comparison_id, ComparedRow.position == row.position)
        query = update(ComparedRow).where(*same, ComparedRow.settled.is_(False), *guards).values(**values)
        changed = self.session.execute(query)
        return bool(changed.rowcount)  # type: ignore[attr-defined]  # an UPDATE's result is a CursorResult

    def finish(self, comparison_id: str, outcome: str) -> bool:
        """Whether this call ended it."""
        query = update(ComparisonRow).where(ComparisonRow.id == comparison_id, ComparisonRow.outcome.is_(None))
        changed = self.session.execute(query.values(outcome=outcome, finished_at=time.time()))
        return bool(changed.rowcount)  # type: ignore[attr-defined]  # an UPDATE's result is a CursorResult


def _found(row: ComparisonRow | None, comparison_id: str) -> ComparisonRow:
    if row is None:
        raise ComparisonNotFound(f"no comparison {comparison_id!r}; GET /v1/comparisons lists them", param="id")
    return row
