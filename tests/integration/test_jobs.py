"""Jobs from submission to artifact: real Celery, real children, each database and each broker."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from app.domain.errors import ModelNotFound
from app.persistence.artifacts import ArtifactRepository
from app.persistence.unit_of_work import Database
from app.services.models import ModelService
from app.settings import Settings
from app.storage import artifacts
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.installation import Installation, folders


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_llama(root / "tiny", hidden_size=256, intermediate_size=512)
    return root


@pytest.fixture(params=["filesystem", "redis"])
def broker_url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("redis_url") if request.param == "redis" else None


@pytest.fixture
def installation(settings: Settings, database: Database, broker_url: str | None, model_folder: Path) -> Installation:
    changed = settings.model_copy(
        update={"database_url": database.engine.url.render_as_string(hide_password=False), "broker_url": broker_url,
                "source_roots": (model_folder,)}
    )  # fmt: skip
    return Installation.on(changed, database)


def test_a_job_becomes_a_proven_artifact_once(installation: Installation) -> None:
    with installation.worker():
        first = installation.wait(installation.submit("tiny", type="gguf", quantization="Q8_0"))
        again = installation.wait(installation.submit("tiny", type="gguf", quantization="Q8_0"))
    assert first.error is None
    assert (first.state, first.quantized_model, first.reused) == ("succeeded", "tiny:gguf-Q8_0", False)
    assert (again.state, again.artifact_id, again.reused) == ("succeeded", first.artifact_id, True)
    assert installation.history(first.id) == ["queued", "running", "succeeded"]
    assert first.quality is not None
    assert first.quality["kl_divergence"]["value"] < 0.01
    assert folders(installation.settings.staging_folder) == []
    _assert_sealed(installation, first.quantized_model)


def _assert_sealed(installation: Installation, name: str) -> None:
    with installation.database.reading() as session:
        row = ArtifactRepository(session).get(name)
    folder = artifacts.locate(row, installation.settings)
    manifest = folder / artifacts.MANIFEST
    assert artifacts.file_sha256(manifest) == row.manifest_sha256
    listed = {entry["path"]: entry["sha256"] for entry in json.loads(manifest.read_text())["files"]}
    present = {path.name: artifacts.file_sha256(path) for path in folder.iterdir() if path != manifest}
    assert listed == present


@pytest.fixture
def sqlite_installation(settings: Settings, sqlite_database: Database, model_folder: Path) -> Installation:
    return Installation.on(settings.model_copy(update={"source_roots": (model_folder,)}), sqlite_database)


def test_a_child_starts_soon_after_the_submission(sqlite_installation: Installation) -> None:
    waits = []
    with sqlite_installation.worker():
        for dtype in ("bf16", "fp16", "fp32"):
            submitted = time.time()
            job = sqlite_installation.wait(sqlite_installation.submit("tiny", type="none", dtype=dtype))
            assert job.started_at is not None
            waits.append(job.started_at - submitted)
    assert min(waits) < 0.5


def test_a_deleted_model_is_gone_and_can_be_made_again(sqlite_installation: Installation) -> None:
    models = ModelService(sqlite_installation.database, sqlite_installation.settings)
    with sqlite_installation.worker():
        first = sqlite_installation.wait(sqlite_installation.submit("tiny", type="none"))
        models.delete(str(first.quantized_model))
        assert folders(sqlite_installation.settings.artifacts_folder) == []
        with pytest.raises(ModelNotFound):
            models.get(str(first.quantized_model))
        second = sqlite_installation.wait(sqlite_installation.submit("tiny", type="none"))
    assert (second.state, second.reused, second.quantized_model) == (
        "succeeded",
        False,
        first.quantized_model,
    )


def test_the_original_is_listed_beside_its_results(sqlite_installation: Installation) -> None:
    with sqlite_installation.worker():
        sqlite_installation.wait(sqlite_installation.submit("tiny", type="none"))
    models = ModelService(sqlite_installation.database, sqlite_installation.settings)
    assert [(row.name, row.kind) for row in models.list()] == [("tiny", "base"), ("tiny:bf16", "quantized")]
    models.delete("tiny")
    assert (sqlite_installation.settings.roots[0] / "tiny" / "config.json").exists(), "the user's files stay"


def test_another_recipe_of_the_same_name_gets_a_name_of_its_own(sqlite_installation: Installation) -> None:
    names = []
    with sqlite_installation.worker():
        for compute_dtype in ("bf16", "fp32"):
            job = sqlite_installation.wait(
                sqlite_installation.submit("tiny", type="bitsandbytes", compute_dtype=compute_dtype)
            )
            names.append(job.quantized_model)
    assert names[0] == "tiny:bnb-nf4"
    assert str(names[1]).startswith("tiny:bnb-nf4-")
