"""The guarded state machine, on real SQLite and real PostgreSQL."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from app.domain.errors import IllegalTransition, JobNotFound
from app.domain.jobs import ALLOWED_TRANSITIONS, JobKind, JobState
from app.persistence.jobs import JobRepository
from app.persistence.tables import JobRow
from app.persistence.unit_of_work import Database


def add_job(database: Database, job_id: str = "qjob-1", **values: Any) -> str:
    defaults: dict[str, Any] = {
        "kind": "quantization",
        "state": JobState.QUEUED,
        "queue": "cpu",
        "model": "demo/tiny",
        "method": {"type": "none", "dtype": "bf16"},
        "suffix": None,
        "user_metadata": {},
        "created_at": time.time(),
    }
    with database.transaction() as session:
        JobRepository(session).add(JobRow(id=job_id, **(defaults | values)))
    return job_id


def claim(database: Database, job_id: str, worker_id: str = "worker", lease_seconds: float = 60) -> int:
    with database.transaction() as session:
        return JobRepository(session).claim(job_id, worker_id=worker_id, lease_seconds=lease_seconds)


def state_of(database: Database, job_id: str) -> str:
    with database.reading() as session:
        return JobRepository(session).get(job_id).state


def test_a_new_job_has_its_first_event(database: Database) -> None:
    job_id = add_job(database)
    with database.reading() as session:
        events = JobRepository(session).events(job_id)
    assert [(event.type, event.data) for event in events] == [("state", {"status": "queued"})]


def test_an_unknown_job_is_named(database: Database) -> None:
    with database.reading() as session, pytest.raises(JobNotFound, match="qjob-none"):
        JobRepository(session).get("qjob-none")


@pytest.mark.parametrize("source", JobState)
@pytest.mark.parametrize("target", JobState)
def test_only_allowed_transitions_change_anything(
    sqlite_database: Database, source: JobState, target: JobState
) -> None:
    job_id = add_job(sqlite_database, state=source)

    def move() -> None:
        with sqlite_database.transaction() as session:
            JobRepository(session).transition(job_id, target, message="moved")

    if target in ALLOWED_TRANSITIONS[source]:
        move()
        assert state_of(sqlite_database, job_id) == target
    else:
        with pytest.raises(IllegalTransition, match=f"is {source}"):
            move()
        assert state_of(sqlite_database, job_id) == source


def test_a_refused_transition_leaves_no_event(database: Database) -> None:
    job_id = add_job(database, state=JobState.SUCCEEDED)
    with pytest.raises(IllegalTransition), database.transaction() as session:
        JobRepository(session).transition(job_id, JobState.FAILED, message="too late")
    with database.reading() as session:
        assert len(JobRepository(session).events(job_id)) == 1


def test_of_many_claims_one_wins(database: Database) -> None:
    job_id = add_job(database)
    won: list[int] = []
    lost: list[Exception] = []
    start = threading.Barrier(8)

    def try_to_claim(number: int) -> None:
        start.wait()
        try:
            won.append(claim(database, job_id, f"worker-{number}"))
        except IllegalTransition as error:
            lost.append(error)

    threads = [threading.Thread(target=try_to_claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (won, len(lost)) == ([1], 7)


def test_an_attempt_that_lost_its_job_can_change_nothing(database: Database) -> None:
    job_id = add_job(database)
    first = claim(database, job_id)
    with database.transaction() as session:
        JobRepository(session).transition(job_id, JobState.QUEUED, message="lost", attempt=first)
    second = claim(database, job_id, "other")
    with database.transaction() as session:
        jobs = JobRepository(session)
        assert jobs.renew(job_id, attempt=first, lease_seconds=60) is None
        assert jobs.renew(job_id, attempt=second, lease_seconds=60) is JobState.RUNNING
        jobs.progress(job_id, attempt=first, fraction=0.9, stage="ghost", eta_seconds=None, metrics={})
        assert jobs.get(job_id).stage == "starting"
        with pytest.raises(IllegalTransition):
            jobs.transition(job_id, JobState.SUCCEEDED, message="ghost", attempt=first)
        jobs.transition(job_id, JobState.SUCCEEDED, message="done", attempt=second)


def test_started_at_keeps_the_first_attempts_time(database: Database) -> None:
    job_id = add_job(database)
    claim(database, job_id)
    with database.transaction() as session:
        first = JobRepository(session).get(job_id).started_at
        JobRepository(session).transition(job_id, JobState.QUEUED, message="lost")
    claim(database, job_id)
    with database.reading() as session:
        assert JobRepository(session).get(job_id).started_at == first


def test_a_final_state_has_its_time_and_no_lease(database: Database) -> None:
    job_id = add_job(database)
    claim(database, job_id)
    with database.transaction() as session:
        JobRepository(session).transition(job_id, JobState.FAILED, message="broken")
    with database.reading() as session:
        row = JobRepository(session).get(job_id)
    assert row.finished_at is not None
    assert row.lease_expires_at is None


def test_pages_follow_each_other_without_gap_or_overlap(database: Database) -> None:
    moment = time.time()
    for number in range(7):  # some of them at the very same time
        add_job(database, f"qjob-{number}", created_at=moment + number // 3)
    seen: list[str] = []
    after, more = None, True
    while more:
        with database.reading() as session:
            rows, more = JobRepository(session).page(
                kind=JobKind.QUANTIZATION, limit=3, after=after, states=[], model=None
            )
        seen += [row.id for row in rows]
        after = rows[-1].id
    assert seen == [f"qjob-{number}" for number in (6, 5, 4, 3, 2, 1, 0)]


def test_pages_can_be_filtered(database: Database) -> None:
    add_job(database, "qjob-1", model="a")
    add_job(database, "qjob-2", model="b")
    add_job(database, "qjob-3", model="b", state=JobState.FAILED)
    with database.reading() as session:
        jobs = JobRepository(session)
        by_model, _ = jobs.page(kind=JobKind.QUANTIZATION, limit=10, after=None, states=[], model="b")
        by_state, _ = jobs.page(kind=JobKind.QUANTIZATION, limit=10, after=None, states=[JobState.FAILED], model=None)
    assert {row.id for row in by_model} == {"qjob-2", "qjob-3"}
    assert [row.id for row in by_state] == ["qjob-3"]


def test_expired_leases_are_found(database: Database) -> None:
    add_job(database, "qjob-dead")
    add_job(database, "qjob-alive")
    claim(database, "qjob-dead", lease_seconds=-1)
    claim(database, "qjob-alive", lease_seconds=60)
    with database.reading() as session:
        assert [job.id for job in JobRepository(session).expired(time.time())] == ["qjob-dead"]


def test_only_unanswered_jobs_of_a_queue_are_unclaimed(database: Database) -> None:
    now = time.time()
    add_job(database, "qjob-fresh", dispatched_at=now)
    add_job(database, "qjob-gpu", queue="gpu", dispatched_at=now - 60)
    add_job(database, "qjob-lost", dispatched_at=now - 60)
    add_job(database, "qjob-never", dispatched_at=None, created_at=now + 1)
    with database.transaction() as session:
        jobs = JobRepository(session)
        assert jobs.unclaimed(["cpu"], ["gguf", "hqq"], dispatched_before=now - 5) is None
        first = jobs.unclaimed(["cpu"], ["none", "gguf"], dispatched_before=now - 5)
        assert first is not None
        assert first.id == "qjob-lost"
        jobs.mark_dispatched("qjob-lost")
        second = jobs.unclaimed(["cpu"], ["none"], dispatched_before=now - 5)
        assert second is not None
        assert second.id == "qjob-never"


@pytest.mark.parametrize("text", ["a \0 b", "half \ud83d of a pair", "x" * 3_000_000])
def test_whatever_a_library_says_can_be_stored(database: Database, text: str) -> None:
    job_id = add_job(database)
    with database.transaction() as session:
        jobs = JobRepository(session)
        attempt = jobs.claim(job_id, worker_id="here-1", lease_seconds=60)
        jobs.progress(job_id, attempt=attempt, fraction=0.5, stage=text[:40], eta_seconds=None, metrics={"name": text})
        error = {"message": text, "type": "server_error", "param": None, "code": "job_failed", "details": {"a": [text]}}
        jobs.transition(job_id, JobState.FAILED, message=text, attempt=attempt, values={"error": error})
    with database.reading() as session:
        job = JobRepository(session).get(job_id)
        events = JobRepository(session).events(job_id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert 0 < len(job.error["message"]) < 10_000
    assert len(events[-1].message) < 10_000
    json.dumps([job.error, [event.data for event in events]]).encode()
