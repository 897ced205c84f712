"""Workers, their hardware and their heartbeats."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.persistence.tables import WorkerRow


class WorkerRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def save(self, worker: WorkerRow) -> None:
        self.session.merge(worker)
        self.session.flush()

    def beat(self, worker_id: str, current_job_id: str | None) -> None:
        values = {"heartbeat_at": time.time(), "current_job_id": current_job_id, "stopped_at": None}
        self.session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(**values))

    def stop(self, worker_id: str) -> None:
        values = {"stopped_at": time.time(), "current_job_id": None}
        self.session.execute(update(WorkerRow).where(WorkerRow.id == worker_id).values(**values))

    def seen_since(self, moment: float) -> Sequence[WorkerRow]:
        """Workers with a heartbeat after `moment`, stopped ones included, newest heartbeat first."""
        query = select(WorkerRow).where(WorkerRow.heartbeat_at >= moment)
        return list(self.session.scalars(query.order_by(WorkerRow.heartbeat_at.desc())))

    def running_on(self, hostname: str) -> Sequence[WorkerRow]:
        """Workers of one machine that never said that they stopped."""
        query = select(WorkerRow).where(WorkerRow.hostname == hostname, WorkerRow.stopped_at.is_(None))
        return list(self.session.scalars(query))
