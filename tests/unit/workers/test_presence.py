"""What a worker gives back of what it holds, and at whose cost."""

from __future__ import annotations

import time

import pytest

from app.domain.jobs import JobKind, JobState
from app.persistence.jobs import JobRepository
from app.persistence.tables import JobRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.dispatcher import RecordingDispatcher
from workers.presence import Presence


@pytest.fixture
def presence(database: Database, settings: Settings) -> Presence:
    return Presence(database, settings, RecordingDispatcher())


@pytest.fixture
def held(database: Database, presence: Presence) -> str:
    """A job that the database says this worker is at."""
    with database.transaction() as session:
        jobs = JobRepository(session)
        jobs.add(JobRow(
            id="qjob-1", kind=JobKind.QUANTIZATION, state=JobState.QUEUED, queue="cpu", model="tiny",
            method={"type": "none"}, user_metadata={}, created_at=time.time(),
        ))  # fmt: skip
        jobs.claim("qjob-1", worker_id=presence.worker_id, lease_seconds=3600)
    return "qjob-1"


def job_of(database: Database, job_id: str) -> JobRow:
    with database.reading() as session:
        return JobRepository(session).get(job_id)


def test_what_it_works_on_it_keeps(database: Database, presence: Presence, held: str) -> None:
    presence.current_job_id = held
    presence.requeue_abandoned()
    assert job_of(database, held).state == JobState.RUNNING


def test_what_the_database_lost_costs_the_job_nothing(database: Database, presence: Presence, held: str) -> None:
    presence.unwritten.add(held)
    presence.requeue_abandoned()
    job = job_of(database, held)
    assert (job.state, job.losses) == (JobState.QUEUED, 0)
    assert presence.unwritten == set()


def test_what_is_noted_meanwhile_stays_noted(database: Database, presence: Presence, held: str) -> None:
    """By the thread that works on jobs, while the heartbeat's gives others back."""
    presence.unwritten |= {held, "qjob-noted-just-now"}
    presence.requeue_abandoned()
    assert presence.unwritten == {"qjob-noted-just-now"}


def test_whatever_else_ended_it_counts(database: Database, presence: Presence, held: str, settings: Settings) -> None:
    """Else a job that always ends its attempts so would be tried for ever."""
    for losses in range(1, settings.max_attempts + 1):
        presence.requeue_abandoned()
        job = job_of(database, held)
        assert job.losses == losses
        if job.state == JobState.QUEUED:
            with database.transaction() as session:
                JobRepository(session).claim(held, worker_id=presence.worker_id, lease_seconds=3600)
    assert job.state == JobState.FAILED


def test_a_worker_of_the_same_host_and_number_is_another(database: Database, settings: Settings, held: str) -> None:
    """As a container that is started again, or one beside it in a namespace of its own."""
    other = Presence(database, settings, RecordingDispatcher())
    other.requeue_abandoned()
    assert job_of(database, held).state == JobState.RUNNING
