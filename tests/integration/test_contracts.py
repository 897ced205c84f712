"""Quality contracts with a real worker: one that is met, and one that nothing meets."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.contract import JobContract
from app.persistence.unit_of_work import Database
from app.services.quantization_jobs import NewJob
from app.settings import Settings
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.installation import Installation


@pytest.fixture
def installation(settings: Settings, sqlite_database: Database, tmp_path: Path) -> Installation:
    tiny_llama(tmp_path / "models" / "tiny", hidden_size=256, intermediate_size=512)
    changed = settings.model_copy(update={"source_roots": (tmp_path / "models",), "serving_context_length": 512})
    return Installation.on(changed, sqlite_database)


def submit(installation: Installation, contract: JobContract) -> str:
    method = {"type": "auto", "candidates": [{"type": "gguf", "quantization": "Q8_0"}]}
    return installation.jobs.submit(NewJob(model="tiny", method=method, contract=contract)).id


def test_terms_are_held_against_what_was_measured(installation: Installation) -> None:
    with installation.worker():
        met = installation.wait(submit(installation, JobContract(max_kl_divergence=1.0, max_memory_bytes=10**10)))
        broken = installation.wait(submit(installation, JobContract(max_kl_divergence=1e-12)))
    assert (met.state, met.error, met.quantized_model) == ("succeeded", None, "tiny:gguf-Q8_0")
    assert met.result is not None
    (entry,) = met.result["tried"]
    assert entry["meets_contract"]
    assert 10 * 1024**2 < entry["measured"]["memory_bytes"] < 10**10
    assert entry["measured"]["decode_tokens_per_second"] > 0
    assert entry["measured"]["kl_divergence"]["standard_error"] > 0
    assert broken.error is not None
    assert (broken.state, broken.error["code"]) == ("failed", "contract_unsatisfiable")
    (entry,) = broken.error["details"]["tried"]
    # The artifact that the first job made, which needed no second making.
    assert (entry["model"], entry["on_pareto_front"]) == ("tiny:gguf-Q8_0", True)
    assert entry["broken_terms"][0].startswith("max_kl_divergence is 1e-12")
