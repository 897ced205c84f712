"""Killing what works on a job, at any moment, ends with the job done exactly once."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.persistence.artifacts import ArtifactRepository
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.checkpoints import bare_checkpoint
from tests.fakes.installation import Installation, end, folders, job_children, wait_until


@pytest.fixture
def installation(settings: Settings, sqlite_database: Database, model_folder: Path) -> Installation:
    return Installation.on(settings.model_copy(update={"source_roots": (model_folder,)}), sqlite_database)


def quantized(installation: Installation) -> list[str]:
    with installation.database.reading() as session:
        return [row.name for row in ArtifactRepository(session).list() if row.kind == "quantized"]


def assert_done_exactly_once(installation: Installation, job_id: str) -> None:
    job = installation.wait(job_id)
    assert (job.state, job.error) == ("succeeded", None)
    assert installation.history(job_id).count("succeeded") == 1
    assert quantized(installation) == [job.quantized_model]
    assert folders(installation.settings.artifacts_folder) == [job.artifact_id]
    wait_until(lambda: folders(installation.settings.staging_folder) == [], "staging is clean")


@pytest.mark.parametrize("stage", ["starting", "quantizing", "measuring"])
def test_a_killed_child_is_replaced(stage: str, installation: Installation) -> None:
    with installation.worker() as worker:
        job_id = installation.submit("small", type="gguf", quantization="Q4_K_M")
        installation.wait_for_stage(job_id, stage)
        for child in job_children(worker):
            child.kill()
        assert_done_exactly_once(installation, job_id)


def test_a_killed_worker_loses_nothing(installation: Installation) -> None:
    first = installation.start_worker("first")
    try:
        wait_until(installation.workers.live, "the first worker arrives")
        job_id = installation.submit("small", type="gguf", quantization="Q4_K_M")
        installation.wait_for_stage(job_id, "quantizing", "measuring")
        children = job_children(first)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    wait_until(lambda: not any(_lives(child) for child in children), "the child dies with its worker")
    with installation.worker("second"):
        assert_done_exactly_once(installation, job_id)
    assert installation.jobs.get(job_id).attempt == 2


def test_a_stopped_worker_gives_its_job_back(installation: Installation) -> None:
    first = installation.start_worker("first")
    try:
        wait_until(installation.workers.live, "the first worker arrives")
        job_id = installation.submit("small", type="gguf", quantization="Q4_K_M")
        installation.wait_for_stage(job_id, "quantizing", "measuring")
        started = time.monotonic()
    finally:
        end(first)
    assert time.monotonic() - started < 10
    assert installation.jobs.get(job_id).state == "queued"
    assert installation.jobs.get(job_id).losses == 0
    with installation.worker("second"):
        assert_done_exactly_once(installation, job_id)


def test_a_lost_message_loses_no_job(installation: Installation) -> None:
    with installation.worker():
        pass  # seen recently: jobs are accepted
    job_id = installation.submit("small", type="none")
    messages = installation.settings.broker_folder / "messages"
    lost = [message.unlink() for message in messages.iterdir()]
    assert lost, "the message was not there to be lost"
    with installation.worker("second"):
        assert_done_exactly_once(installation, job_id)


def test_a_message_delivered_many_times_runs_once(installation: Installation) -> None:
    with installation.worker():
        job_id = installation.submit("small", type="none")
        for _ in range(5):
            installation.dispatcher.send(job_id, "cpu")
        assert_done_exactly_once(installation, job_id)
        time.sleep(1)  # the remaining messages are refused meanwhile; any effect would show below
        assert installation.jobs.get(job_id).attempt == 1


def test_a_job_that_always_kills_its_process_fails_in_the_end(installation: Installation) -> None:
    with installation.worker() as worker:
        job_id = installation.submit("small", type="gguf", quantization="Q4_K_M")
        killed = 0
        while installation.jobs.get(job_id).state in ("queued", "running"):
            for child in job_children(worker):
                killed += 1
                child.kill()
            time.sleep(0.05)
    job = installation.wait(job_id)
    assert (job.state, job.losses) == ("failed", 3)
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
    assert "SIGKILL" in job.error["message"]
    assert killed >= 3


def test_a_child_that_hangs_is_replaced(settings: Settings, sqlite_database: Database, model_folder: Path) -> None:
    quick = {"source_roots": (model_folder,), "job_silence_seconds": 6}
    installation = Installation.on(settings.model_copy(update=quick), sqlite_database)
    with installation.worker() as worker:
        job_id = installation.submit("small", type="gguf", quantization="Q4_K_M")
        installation.wait_for_stage(job_id, "quantizing", "measuring")
        for child in job_children(worker):
            os.kill(child.pid, signal.SIGSTOP)
        assert_done_exactly_once(installation, job_id)
    job = installation.jobs.get(job_id)
    assert (job.attempt, job.losses) == (2, 1)


def test_a_stage_that_gets_no_further_is_named(settings: Settings, sqlite_database: Database, tmp_path: Path) -> None:
    bare_checkpoint(tmp_path / "models" / "odd", architecture="OddForCausalLM")
    never = f"{sys.executable} -c 'import time; time.sleep(3607.25)' {{source}} {{target}}"
    quick = {
        "source_roots": (tmp_path / "models",), "gguf_converter": never, "stage_timeout_seconds": 15, "max_attempts": 1,
    }  # fmt: skip
    installation = Installation.on(settings.model_copy(update=quick), sqlite_database)
    with installation.worker() as worker:
        job = installation.wait(installation.submit("odd", type="gguf", quantization="F16"))
        assert (job.state, job.losses) == ("failed", 1)
        assert job.error is not None
        assert job.error["code"] == "worker_lost"
        assert "got no further for 15 s in the stage 'converting to GGUF'" in job.error["message"]
        converters = [
            each for each in psutil.process_iter(["cmdline"]) if "time.sleep(3607.25)" in str(each.info["cmdline"])
        ]
        assert converters == []
        assert job_children(worker) == []


def test_cancelling_ends_the_child_within_two_seconds(installation: Installation) -> None:
    with installation.worker() as worker:
        job_id = installation.submit("small", type="gguf", quantization="Q4_K_M")
        installation.wait_for_stage(job_id, "quantizing", "measuring")
        children = job_children(worker)
        started = time.monotonic()
        installation.jobs.cancel(job_id)
        wait_until(lambda: not any(_lives(child) for child in children), "the child ends", 2)
        assert time.monotonic() - started < 2
        assert installation.wait(job_id, 5).state == "cancelled"
        wait_until(lambda: folders(installation.settings.staging_folder) == [], "staging is clean", 5)
        assert quantized(installation) == []
        installation.jobs.cancel(job_id)  # cancelling twice is no error
        # The worker goes on with the next job.
        next_id = installation.submit("small", type="none")
        assert installation.wait(next_id).state == "succeeded"


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_queued_job_is_cancelled_at_once(installation: Installation) -> None:
    with installation.worker():
        pass
    job_id = installation.submit("small", type="none")
    assert installation.jobs.cancel(job_id).state == "cancelled"
    assert installation.history(job_id) == ["queued", "cancelled"]
