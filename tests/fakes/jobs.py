"""Jobs as a client submits them, and as a worker ends them."""

from __future__ import annotations

from typing import Any

from fastapi.testclient import TestClient

from app.domain.jobs import JobState
from app.persistence.jobs import JobRepository
from app.persistence.unit_of_work import Database

JOBS = "/v1/quantization/jobs"


def submit(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post(JOBS, json={"model": "tiny", "method": {"type": "none"}} | body)
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


def finish(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        jobs = JobRepository(session)
        attempt = jobs.claim(job_id, worker_id="here-1", lease_seconds=60)
        jobs.progress(job_id, attempt=attempt, fraction=0.5, stage="half", eta_seconds=1.0, metrics={})
        jobs.transition(job_id, JobState.SUCCEEDED, message="done", attempt=attempt)
