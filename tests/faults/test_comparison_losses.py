"""A worker that is killed in the middle of a comparison loses none of its jobs and doubles none."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from app.domain.comparison import ComparisonRequest
from app.domain.evaluation import Metric
from app.persistence.jobs import JobRepository
from app.persistence.unit_of_work import Database
from app.services.comparisons import ComparisonService
from app.services.evaluations import EvaluationService
from app.settings import Settings
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.installation import Installation, wait_until


@pytest.fixture
def installation(settings: Settings, sqlite_database: Database, tmp_path: Path) -> Installation:
    # Large enough that a job lasts for seconds and can be met at work.
    tiny_llama(tmp_path / "models" / "small", hidden_size=512, intermediate_size=2048, layers=6, vocab_size=2048)
    return Installation.on(settings.model_copy(update={"source_roots": (tmp_path / "models",)}), sqlite_database)


def test_a_comparison_ends_with_every_job_done_once(installation: Installation) -> None:
    evaluations = EvaluationService(
        installation.database, installation.settings, installation.dispatcher, installation.workers
    )
    comparisons = ComparisonService(installation.database, installation.dispatcher, installation.workers, evaluations)
    request = ComparisonRequest(
        model="small", methods=({"type": "none", "dtype": "fp16"},), samples=2, context_length=64,
        metrics=(Metric.PERPLEXITY, Metric.KL_DIVERGENCE),
    )  # fmt: skip
    first = installation.start_worker("first")
    try:
        wait_until(installation.workers.live, "the first worker arrives")
        comparison_id = comparisons.submit(request)["id"]
        job_id = wait_until(lambda: comparisons.get(comparison_id)["rows"][1]["quantization_job"], "a job is made")
        installation.wait_for_stage(job_id, "quantizing", "loading", "measuring")
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    with installation.worker("second"):
        wait_until(lambda: comparisons.get(comparison_id)["status"] != "running", "the comparison ends", 180)
    view = comparisons.get(comparison_id)
    assert (view["status"], [row["error"] for row in view["rows"]]) == ("succeeded", [None, None])
    assert view["rows"][1]["kl_divergence"]["value"] > 0
    made = [view["rows"][0]["evaluation_job"], view["rows"][1]["quantization_job"], view["rows"][1]["evaluation_job"]]
    with installation.database.reading() as session:
        assert JobRepository(session).counts() == {"succeeded": 3}
    assert all(installation.history(job).count("succeeded") == 1 for job in made)
    assert installation.jobs.get(job_id).attempt == 2
