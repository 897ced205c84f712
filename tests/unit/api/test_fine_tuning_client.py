"""Fine-tuning jobs through OpenAI's own client, unchanged."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from app.domain.jobs import JobState
from app.persistence.jobs import JobRepository
from app.persistence.unit_of_work import Database
from tests.fakes.checkpoints import bare_checkpoint
from tests.unit.api.conftest import AddWorker

LINE = json.dumps({"prompt": "The mill stands ", "completion": "by the river."})


@pytest.fixture
def official(client: TestClient, add_worker: AddWorker, root: Path) -> openai.OpenAI:
    add_worker(methods={"lora": None, "qlora": None})
    bare_checkpoint(root / "tiny")
    return openai.OpenAI(base_url="http://testserver/v1", api_key="unused", http_client=client, max_retries=0)


@pytest.fixture
def training_file(official: openai.OpenAI) -> str:
    return official.files.create(file=("train.jsonl", LINE.encode()), purpose="fine-tune").id


def create(official: openai.OpenAI, training_file: str, **options: Any) -> Any:
    return official.fine_tuning.jobs.create(model="tiny", training_file=training_file, **options)


def test_a_job_is_created_retrieved_and_cancelled(official: openai.OpenAI, training_file: str) -> None:
    job = create(
        official, training_file, suffix="mill", seed=3, metadata={"team": "flour"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        extra_body={"bitmill": {"adapter": "lora", "rank": 8}},
    )  # fmt: skip
    assert (job.object, job.status, job.seed) == ("fine_tuning.job", "queued", 3)
    assert job.hyperparameters.n_epochs == 2
    assert job.method.supervised.hyperparameters.n_epochs == 2
    assert (job.training_file, job.validation_file, job.result_files) == (training_file, None, [])
    assert abs(job.created_at - time.time()) < 60
    assert official.fine_tuning.jobs.retrieve(job.id) == job
    assert official.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_a_job_is_paused_and_resumed(official: openai.OpenAI, training_file: str) -> None:
    job = create(official, training_file)
    assert official.fine_tuning.jobs.pause(job.id).status == "paused"
    assert official.fine_tuning.jobs.resume(job.id).status == "queued"


def test_every_page_is_found(official: openai.OpenAI, training_file: str) -> None:
    made = [create(official, training_file).id for _ in range(5)]
    found = [job.id for job in official.fine_tuning.jobs.list(limit=2)]
    assert found == made[::-1]


def test_jobs_are_found_by_metadata(official: openai.OpenAI, training_file: str) -> None:
    wanted = create(official, training_file, metadata={"team": "flour"})
    create(official, training_file, metadata={"team": "water"})
    assert [job.id for job in official.fine_tuning.jobs.list(metadata={"team": "flour"})] == [wanted.id]


def test_events_and_checkpoints_are_read_to_their_ends(
    official: openai.OpenAI, sqlite_database: Database, training_file: str
) -> None:
    job = create(official, training_file)
    with sqlite_database.transaction() as session:
        jobs = JobRepository(session)
        jobs.claim(job.id, worker_id="here-1", lease_seconds=60)
        for step in range(1, 6):
            figures = {"train_loss": 1.0 / step}
            jobs.record(job.id, attempt=1, type_="metrics", message=f"Step {step}", data={"step": step, **figures})
            jobs.record(
                job.id, attempt=1, type_="checkpoint", message="Saved.", data={"step": step, "metrics": figures}
            )
    events = list(official.fine_tuning.jobs.list_events(job.id, limit=3))
    assert [event.data["step"] for event in events if event.type == "metrics"] == [5, 4, 3, 2, 1]
    assert events[-1].message == "The job is queued."
    checkpoints = list(official.fine_tuning.jobs.checkpoints.list(job.id, limit=2))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [5, 4, 3, 2, 1]
    assert checkpoints[0].metrics.train_loss == 0.2


def test_a_failure_is_told(official: openai.OpenAI, sqlite_database: Database, training_file: str) -> None:
    job = create(official, training_file)
    error = {"message": "no", "type": "server_error", "param": None, "code": "training_failed"}
    with sqlite_database.transaction() as session:
        jobs = JobRepository(session)
        jobs.claim(job.id, worker_id="here-1", lease_seconds=60)
        jobs.transition(job.id, JobState.FAILED, message="no", attempt=1, values={"error": error})
    ended = official.fine_tuning.jobs.retrieve(job.id)
    assert (ended.status, ended.error.code, ended.error.message) == ("failed", "training_failed", "no")
    with pytest.raises(openai.ConflictError):
        official.fine_tuning.jobs.cancel(job.id)


def test_what_is_wrong_is_openais_error(official: openai.OpenAI, training_file: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        create(official, training_file, extra_body={"bitmill": {"rank": 0}})
    assert (raised.value.param, raised.value.code) == ("bitmill.rank", "invalid_parameter")
    with pytest.raises(openai.NotFoundError):
        official.fine_tuning.jobs.retrieve("ftjob-000000000000000000000000")
