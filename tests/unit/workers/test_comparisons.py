"""Comparisons taken forward by the sweep, on both databases, with jobs that are ended by hand."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.domain.comparison import ComparisonRequest
from app.domain.errors import QualityGateFailed
from app.domain.hardware import Hardware
from app.domain.jobs import JobState
from app.persistence.artifacts import ArtifactRepository
from app.persistence.comparisons import ComparisonRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import ArtifactRow, ComparedRow, JobRow, WorkerRow
from app.persistence.unit_of_work import Database
from app.persistence.workers import WorkerRepository
from app.services.comparisons import ComparisonService
from app.services.evaluations import EvaluationService
from app.services.workers import WorkerService
from app.settings import Settings
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.fakes.checkpoints import write_safetensors
from tests.fakes.dispatcher import RecordingDispatcher
from workers.comparisons import advance_comparisons, find_source

METHODS = ({"type": "none"}, {"type": "gptq"})


class Bench:
    """A comparison of two methods of a model with rows of 64 weights, and the sweep's hand."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.dispatcher = RecordingDispatcher()
        workers = WorkerService(database, settings)
        evaluations = EvaluationService(database, settings, self.dispatcher, workers)
        self.service = ComparisonService(database, self.dispatcher, workers, evaluations)

    def submit(self, *methods: dict[str, Any]) -> str:
        found: str = self.service.submit(ComparisonRequest(model="tiny", methods=methods or METHODS))["id"]
        return found

    def sweep(self) -> None:
        advance_comparisons(self.database, self.settings, self.dispatcher)

    def rows(self, comparison_id: str) -> list[ComparedRow]:
        with self.database.reading() as session:
            return ComparisonRepository(session).rows(comparison_id)

    def view(self, comparison_id: str) -> dict[str, Any]:
        return self.service.get(comparison_id)

    def jobs(self) -> dict[str, JobRow]:
        sent = [job_id for job_id, _ in self.dispatcher.sent]
        with self.database.reading() as session:
            return {job_id: JobRepository(session).get(job_id) for job_id in sent}

    def end(self, job_id: str | None, state: JobState = JobState.SUCCEEDED, **values: Any) -> None:
        assert job_id is not None
        with self.database.transaction() as session:
            jobs = JobRepository(session)
            attempt = jobs.claim(job_id, worker_id="here-1", lease_seconds=60)
            jobs.transition(job_id, state, message="Ended by hand.", attempt=attempt, values=values)


@pytest.fixture
def bench(database: Database, settings: Settings, tmp_path: Path) -> Bench:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 64}')
    write_safetensors(folder / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": ("BF16", [128, 64])})
    now = time.time()
    hardware = Hardware(hostname="here", processor="some", cores=2, memory_bytes=8 * 2**30)
    worker = WorkerRow(
        id="here-1", hostname="here", pid=1, process_started_at=now, queues=["cpu"],
        hardware=hardware.model_dump(mode="json"), methods={"none": None, "gptq": None, "awq": "install gptqmodel"},
        version="0", started_at=now, heartbeat_at=now,
    )  # fmt: skip
    with database.transaction() as session:
        WorkerRepository(session).save(worker)
    return Bench(database, settings.model_copy(update={"source_roots": (folder.parent,)}))


def test_an_original_that_cannot_be_read_ends_its_own_comparison_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = bench.submit(), bench.submit()
    fails = True

    def unreadable(folder: Path) -> Checkpoint:
        nonlocal fails
        if fails:
            fails = False
            raise PermissionError(13, "Permission denied", "/models/tiny/model.safetensors")
        return inspect_checkpoint(folder)

    monkeypatch.setattr("workers.comparisons.inspect_checkpoint", unreadable)
    bench.sweep()
    error = bench.rows(first)[1].error
    assert error is not None
    assert "Permission denied" in error["message"]
    assert all(row.quantization_job_id for row in bench.rows(second)[1:])


def test_a_result_whose_name_no_job_takes_settles_its_row(bench: Bench) -> None:
    comparison = bench.submit({"type": "none"})
    bench.sweep()
    bench.end(bench.rows(comparison)[1].quantization_job_id, quantized_model="x" * 600)
    bench.sweep()
    row = bench.rows(comparison)[1]
    assert row.settled
    assert row.error is not None
    assert "at most 512 characters" in row.error["message"]


def test_a_comparison_runs_from_its_first_job_to_its_outcome(bench: Bench) -> None:
    comparison_id = bench.submit()
    assert [job_id.partition("-")[0] for job_id, _ in bench.dispatcher.sent] == ["eval"]
    bench.sweep()
    original, none, gptq = bench.rows(comparison_id)
    assert gptq.method is not None
    assert gptq.method["group_size"] == 64  # what divides the model's rows
    bench.end(none.quantization_job_id, quantized_model="tiny:bf16")
    bench.end(gptq.quantization_job_id, quantized_model="tiny:gptq")
    bench.sweep()
    _, none, gptq = bench.rows(comparison_id)
    asked = bench.jobs()[none.evaluation_job_id or ""].request
    assert asked is not None
    assert (asked["model"], asked["reference"], asked["samples"]) == ("tiny:bf16", "tiny", 32)
    for row in (original, none, gptq):
        bench.end(row.evaluation_job_id)
    assert bench.view(comparison_id)["status"] == "running"
    bench.sweep()
    view = bench.view(comparison_id)
    assert (view["status"], view["progress"]["fraction"], view["progress"]["settled"]) == ("succeeded", 1.0, 3)
    assert len(bench.dispatcher.sent) == 5  # two quantizations and three evaluations, each once


def test_sweeping_again_makes_no_job_twice(bench: Bench) -> None:
    bench.submit()
    bench.sweep()
    sent = list(bench.dispatcher.sent)
    bench.sweep()
    assert bench.dispatcher.sent == sent


def test_many_workers_sweep_at_once_and_each_job_is_made_once(bench: Bench) -> None:
    comparison_id = bench.submit()
    threads = [threading.Thread(target=bench.sweep) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    sent = [job_id for job_id, _ in bench.dispatcher.sent]
    assert len(sent) == len(set(sent)) == 3
    assert {row.quantization_job_id for row in bench.rows(comparison_id)[1:]} == set(sent[1:])


def test_a_method_that_fails_has_a_row_that_says_why(bench: Bench) -> None:
    comparison_id = bench.submit()
    bench.sweep()
    original, none, gptq = bench.rows(comparison_id)
    bench.end(none.quantization_job_id, JobState.FAILED, error=QualityGateFailed("it repeats one token").to_dict())
    bench.end(gptq.quantization_job_id, quantized_model="tiny:gptq")
    bench.sweep()
    bench.end(bench.rows(comparison_id)[2].evaluation_job_id)
    bench.end(original.evaluation_job_id)
    bench.sweep()
    view = bench.view(comparison_id)
    assert view["status"] == "succeeded"
    assert [row["status"] for row in view["rows"]] == ["succeeded", "failed", "succeeded"]
    assert view["rows"][1]["error"]["code"] == "quality_gate_failed"
    assert "repeats" in view["rows"][1]["error"]["message"]


def test_what_cannot_be_done_is_a_row_and_not_a_refusal(bench: Bench) -> None:
    comparison_id = bench.submit({"type": "awq"}, {"type": "gptq", "group_size": 128}, {"type": "none"})
    bench.sweep()
    _, awq, gptq, none = bench.view(comparison_id)["rows"]
    assert awq["error"]["code"] == "method_unavailable"
    assert "install gptqmodel" in awq["error"]["message"]
    assert gptq["error"]["code"] == "incompatible_model"
    assert "choose group_size 64" in gptq["error"]["message"]
    assert none["quantization_job"] is not None


def test_one_of_which_nothing_came_has_failed(bench: Bench) -> None:
    comparison_id = bench.submit({"type": "awq"})
    bench.end(bench.rows(comparison_id)[0].evaluation_job_id)
    bench.sweep()
    assert bench.view(comparison_id)["status"] == "failed"


def test_cancelling_ends_every_open_job_and_makes_no_other(bench: Bench) -> None:
    comparison_id = bench.submit()
    bench.sweep()
    bench.end(bench.rows(comparison_id)[1].quantization_job_id, quantized_model="tiny:bf16")
    assert bench.service.cancel(comparison_id)["status"] == "cancelled"
    bench.sweep()
    states = {job_id: job.state for job_id, job in bench.jobs().items()}
    assert sorted(states.values()) == ["cancelled", "cancelled", "succeeded"]
    assert bench.service.cancel(comparison_id)["status"] == "cancelled"  # twice is no error


def test_a_gguf_file_is_found_where_it_was_unpacked(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / "models"
    (root / "small.gguf").write_bytes(b"GGUF")
    row = ArtifactRow(
        id="base", name="small.gguf", kind=ArtifactKind.BASE, format=ArtifactFormat.SAFETENSORS, source=None,
        path=str(root / "tiny"), source_fingerprint="0" * 64, key="0" * 64, versions={}, size_bytes=1,
        parameter_count=1, bits_per_weight=16.0, tensor_types={}, manifest_sha256="0" * 64, created_at=0.0,
    )  # fmt: skip
    with bench.database.transaction() as session:
        assert find_source(session, "small.gguf", bench.settings) is None
        ArtifactRepository(session).add(row)
        assert find_source(session, "small.gguf", bench.settings) == root / "tiny"
        assert find_source(session, str(root / "small.gguf"), bench.settings) == root / "tiny"
        assert find_source(session, "tiny", bench.settings) == root / "tiny"


def test_jobs_wait_until_the_original_is_there(bench: Bench) -> None:
    comparison_id = bench.service.submit(
        ComparisonRequest(model="demo/smollm2-135m-instruct", methods=({"type": "none"},))
    )["id"]
    bench.sweep()
    original, none = bench.rows(comparison_id)
    assert none.quantization_job_id is None
    bench.end(original.evaluation_job_id, JobState.FAILED, error={"message": "the package is not installed"})
    bench.sweep()
    view = bench.view(comparison_id)
    assert view["status"] == "failed"
    assert "the package is not installed" in view["rows"][1]["error"]["message"]
