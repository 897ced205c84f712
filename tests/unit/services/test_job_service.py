"""Wishes that come at the moment in which a worker takes the job, on both databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from app.domain.jobs import JobKind, JobState
from app.persistence.jobs import JobRepository
from app.persistence.tables import JobRow
from app.persistence.unit_of_work import Database
from app.services.fine_tuning import FineTuningService
from app.services.workers import WorkerService
from app.settings import Settings
from tests.fakes.dispatcher import RecordingDispatcher


@pytest.fixture
def job_id(database: Database) -> str:
    row = JobRow(
        id="ftjob-1", kind=JobKind.FINE_TUNING, state=JobState.QUEUED, queue="cpu", model="tiny",
        method={"type": "lora"}, user_metadata={}, created_at=time.time(),
    )  # fmt: skip
    with database.transaction() as session:
        JobRepository(session).add(row)
    return row.id


@pytest.fixture
def claimed_meanwhile(database: Database, job_id: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker claims the job after its state was read and before it is changed, if nothing keeps it from that."""
    transition = JobRepository.transition

    def claim() -> None:
        with database.transaction() as session:
            if JobRepository(session).get(job_id).state == JobState.QUEUED:
                JobRepository(session).claim(job_id, worker_id="here-1", lease_seconds=60)

    worker = threading.Thread(target=claim)

    def slow_transition(self: JobRepository, job: str, target: JobState, **more: Any) -> None:
        if target is not JobState.RUNNING:
            worker.start()
            worker.join(timeout=0.5)
        transition(self, job, target, **more)

    monkeypatch.setattr(JobRepository, "transition", slow_transition)
    yield
    worker.join(timeout=10)


@pytest.mark.parametrize(("wish", "state"), [("cancel", "cancelled"), ("pause", "paused")])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the claim loses
def test_a_wish_for_a_job_that_is_just_claimed_is_granted(
    database: Database, settings: Settings, job_id: str, claimed_meanwhile: None, wish: str, state: str
) -> None:
    service = FineTuningService(database, settings, RecordingDispatcher(), WorkerService(database, settings))
    assert getattr(service, wish)(job_id).state == state
