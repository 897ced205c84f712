"""Evaluations from submission to figures: a real worker, real children, a real engine."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from app.domain.evaluation import EvaluationRequest, EvaluationResult
from app.persistence.artifacts import ArtifactRepository
from app.persistence.unit_of_work import Database
from app.services.evaluations import EvaluationService
from app.settings import Settings
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.installation import Installation


@pytest.fixture
def installation(settings: Settings, sqlite_database: Database, tmp_path: Path) -> Installation:
    tiny_llama(tmp_path / "models" / "tiny", hidden_size=256, intermediate_size=512)
    changed = settings.model_copy(update={"source_roots": (tmp_path / "models",), "serving_context_length": 512})
    return Installation.on(changed, sqlite_database)


def test_an_artifact_is_measured_and_its_row_tells(installation: Installation) -> None:
    evaluations = EvaluationService(
        installation.database, installation.settings, installation.dispatcher, installation.workers
    )
    with installation.worker():
        made = installation.wait(installation.submit("tiny", type="gguf", quantization="Q8_0"))
        assert made.quantized_model is not None, made.error
        request = EvaluationRequest(model=made.quantized_model, samples=2, context_length=64)
        job = installation.wait(evaluations.submit(request).id)
    assert job.error is None
    result = EvaluationResult.model_validate(job.result)
    assert result.quality is not None
    assert made.quality is not None
    # The same windows as the proof's, so the same figures.
    assert result.quality.kl_divergence is not None
    assert result.quality.kl_divergence.mean.value == pytest.approx(made.quality["kl_divergence"]["value"], rel=1e-6)
    _require_serving(result)
    with installation.database.reading() as session:
        assert ArtifactRepository(session).get(made.quantized_model).evaluation == job.result
    assert not [process for process in psutil.process_iter(["cmdline"]) if _is_engine(process, installation.settings)]


def _require_serving(result: EvaluationResult) -> None:
    assert result.serving is not None
    assert result.serving.engine == "llama_cpp"
    assert result.serving.load_seconds > 0
    assert (result.serving.resident_bytes or 0) > 10 * 1024**2
    assert [each.requests for each in result.serving.speed] == [1, 8]
    assert all(each.output_tokens > 0 for each in result.serving.speed)


def _is_engine(process: psutil.Process, settings: Settings) -> bool:
    command = " ".join(process.info["cmdline"] or [])  # what process_iter was asked to read
    return str(settings.data_folder) in command and "engines" in command
