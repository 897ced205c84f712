"""Fine-tuning jobs from the uploaded file to answers: a real worker, real children, a real serving host."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.domain.files import FilePurpose
from app.domain.fine_tuning import FineTuningRequest
from app.domain.jobs import JobState
from app.persistence.artifacts import ArtifactRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow, JobRow
from app.persistence.unit_of_work import Database
from app.services.files import FileService
from app.services.fine_tuning import FineTuningService
from app.settings import Settings
from app.storage.artifacts import locate
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.installation import Installation, end, folders, job_children, wait_until
from tests.fakes.training import request_for, write_facts
from workers.serving.models import ModelDirectory


@pytest.fixture
def installation(settings: Settings, sqlite_database: Database, tmp_path: Path) -> Installation:
    tiny_llama(tmp_path / "models" / "tiny", initializer_range=0.05)
    changed = settings.model_copy(update={"source_roots": (tmp_path / "models",)})
    return Installation.on(changed, sqlite_database)


@pytest.fixture
def service(installation: Installation) -> FineTuningService:
    return FineTuningService(
        installation.database, installation.settings, installation.dispatcher, installation.workers
    )


@pytest.fixture
def training_file(installation: Installation, tmp_path: Path) -> str:
    files = FileService(installation.database, installation.settings)
    content = write_facts(tmp_path / "facts.jsonl").read_bytes()
    with files.stage(len(content)) as staged:
        staged.write(content)
        return files.add(staged, "facts.jsonl", FilePurpose.FINE_TUNE).id


Submit = Callable[..., str]


@pytest.fixture
def submit(service: FineTuningService, training_file: str) -> Submit:
    def send(adapter: str, **options: Any) -> str:
        wanted = request_for(adapter, **options).model_dump(mode="json")
        return service.submit(
            FineTuningRequest.model_validate(wanted | {"model": "tiny", "training_file": training_file})
        ).id

    return send


def artifact_of(installation: Installation, job: JobRow) -> ArtifactRow:
    assert job.error is None, job.error
    assert job.quantized_model is not None
    with installation.database.reading() as session:
        return ArtifactRepository(session).get(job.quantized_model)


def steps(installation: Installation, job_id: str) -> list[int]:
    with installation.database.reading() as session:
        events = JobRepository(session).events(job_id)
    return [event.data["step"] for event in events if event.type == "metrics"]


def wait_for_step(installation: Installation, job_id: str, step: int) -> None:
    wait_until(lambda: steps(installation, job_id)[-1:] >= [step], f"{job_id} makes step {step}")


def test_an_adapter_is_trained_proven_published_and_quantized(installation: Installation, submit: Submit) -> None:
    with installation.worker():
        job = installation.wait(submit("lora"))
        row = artifact_of(installation, job)
        assert (row.kind, row.format, row.source) == (ArtifactKind.FINE_TUNED, ArtifactFormat.ADAPTER, "tiny")
        assert row.name == f"ft:tiny:bitmill::{job.id[-8:]}"
        result = job.result or {}
        assert result["proof"]["loss"] < result["proof"]["base_loss"]
        assert result["hyperparameters"] == {"n_epochs": 10, "batch_size": 2, "learning_rate_multiplier": 50.0}
        folder = locate(row, installation.settings)
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "quality.json"} <= set(folders(folder))
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
        assert steps(installation, job.id)[-1] == result["steps"]
        (results,) = result["result_files"]
        file, path = FileService(installation.database, installation.settings).content(results)
        lines = path.read_text().splitlines()
        assert (file.purpose, lines[0].split(",")[:2]) == ("fine-tune-results", ["step", "train_loss"])
        assert len(lines) == 1 + result["steps"]
        served = ModelDirectory(installation.database, installation.settings).find(row.name)
        assert (served.name, served.public_name) == ("tiny", row.name)
        # Merged on the way: the quantized model has learned too.
        quantized = installation.wait(installation.submit(row.name, type="none", dtype="bf16"))
        merged = artifact_of(installation, quantized)
        assert (merged.source, merged.kind) == (row.name, ArtifactKind.QUANTIZED)
        assert (quantized.quality or {})["kl_divergence"]["value"] < 0.01
    assert folders(installation.settings.checkpoints_folder) == []


def test_the_other_ways_of_training_leave_whole_models(installation: Installation, submit: Submit) -> None:
    with installation.worker():
        wanted = {
            "qat": {"multiplier": 100.0, "quantization": {"group_size": 32}},
            "qlora": {"merge": True},
        }
        jobs = {adapter: submit(adapter, **options) for adapter, options in wanted.items()}
        for adapter, job_id in jobs.items():
            row = artifact_of(installation, installation.wait(job_id))
            assert (row.format, row.method and row.method["type"]) == (ArtifactFormat.SAFETENSORS, adapter)
            assert (row.bits_per_weight < 12) is (adapter == "qat")


def test_a_paused_job_goes_on_where_it_was(
    installation: Installation, service: FineTuningService, submit: Submit
) -> None:
    with installation.worker():
        job_id = submit("lora", epochs=30)
        wait_for_step(installation, job_id, 4)
        service.pause(job_id)
        wait_until(lambda: service.get(job_id).state == JobState.PAUSED, "the job is paused")
        assert folders(installation.settings.staging_folder) == []
        assert folders(installation.settings.checkpoints_folder) == [job_id]
        made = steps(installation, job_id)
        assert (service.get(job_id).worker_id, service.get(job_id).stage) == (None, "paused")
        service.resume(job_id)
        job = installation.wait(job_id)
    assert artifact_of(installation, job)
    # No step was made twice, and none was left out.
    assert steps(installation, job_id) == list(range(1, 91))
    assert len(made) < 90
    assert installation.history(job_id) == [
        "queued", "running", "pausing", "paused", "queued", "running", "succeeded",
    ]  # fmt: skip


def test_a_killed_worker_costs_only_the_steps_since_its_checkpoint(installation: Installation, submit: Submit) -> None:
    with installation.worker("first") as worker:
        job_id = submit("lora", epochs=30)
        wait_for_step(installation, job_id, 7)
        worker.kill()
        for child in job_children(worker):
            child.kill()
        end(worker)
    with installation.worker("second"):
        job = installation.wait(job_id)
    assert artifact_of(installation, job)
    made = steps(installation, job_id)
    # The second attempt begins behind a checkpoint, one of which is written after each epoch of three steps.
    again = next((made[index] for index in range(1, len(made)) if made[index] <= made[index - 1]), 90)
    assert again > 3
    assert (made[-1], job.attempt) == (90, 2)


def test_a_cancelled_job_leaves_nothing(installation: Installation, service: FineTuningService, submit: Submit) -> None:
    with installation.worker():
        job_id = submit("lora", epochs=500)
        wait_for_step(installation, job_id, 2)
        service.cancel(job_id)
        job = installation.wait(job_id)
        assert job.state == JobState.CANCELLED
        wait_until(lambda: not folders(installation.settings.checkpoints_folder), "the checkpoints are removed")
    assert folders(installation.settings.artifacts_folder) == []


def test_what_was_not_learned_is_no_success(installation: Installation, submit: Submit) -> None:
    with installation.worker():
        job = installation.wait(submit("full", epochs=1, multiplier=1e-6))
        assert (job.state, (job.error or {})["code"]) == (JobState.FAILED, "quality_gate_failed")
