"""Deployments as asked for: options by model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.persistence.tables import DeploymentRow


class DeploymentRepository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def put(self, model: str, options: dict[str, Any]) -> None:
        """Adds the model's deployment, or gives it new options."""
        row = self.find(model)
        if row is None:
            self.session.add(DeploymentRow(model=model, options=options, created_at=time.time()))
        else:
            row.options = options
        self.session.flush()

    def find(self, model: str) -> DeploymentRow | None:
        return self.session.get(DeploymentRow, model)

    def list(self) -> Sequence[DeploymentRow]:
        return list(self.session.scalars(select(DeploymentRow).order_by(DeploymentRow.created_at)))

    def delete(self, model: str) -> None:
        self.session.execute(delete(DeploymentRow).where(DeploymentRow.model == model))
