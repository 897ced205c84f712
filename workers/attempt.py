"""One attempt at a job, and what its worker may find when it looks whether to go on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.persistence.tables import JobRow
from workers.lease import Lease


@dataclass(frozen=True)
class Attempt:
    job: JobRow
    number: int
    staging: Path
    lease: Lease
    # Which part of the job's progress the work at hand fills, and what it is called there.
    span: tuple[float, float] = (0.0, 1.0)
    label: str = ""

    @property
    def artifact(self) -> Path:
        return self.staging / "artifact"


class LeaseLost(Exception):
    """Another attempt owns the job, or it ended, or it may: this one must leave no trace."""


class CancelRequested(Exception):
    """Somebody asked for the job's end."""


class PauseRequested(Exception):
    """Somebody asked for a pause, and what is there to go on from is saved."""


class Stopping(Exception):
    """This worker is being shut down."""
