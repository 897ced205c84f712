"""Uploaded models and GGUF files, from the request to the proven artifact, through a real worker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.persistence.artifacts import ArtifactRepository
from app.persistence.tables import JobRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage import artifacts
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.archives import pack, write_tar
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.installation import Installation, folders


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_llama(root / "tiny", hidden_size=256, intermediate_size=512)
    return root


@pytest.fixture
def installation(settings: Settings, sqlite_database: Database, tmp_path: Path) -> Installation:
    root = tmp_path / "root"
    root.mkdir()
    return Installation.on(settings.model_copy(update={"source_roots": (root,)}), sqlite_database)


@pytest.fixture
def client(installation: Installation) -> Iterator[TestClient]:
    with TestClient(create_app(installation.settings)) as client:
        yield client


def upload(client: TestClient, path: Path) -> str:
    with path.open("rb") as file:
        answer = client.post("/v1/files", files={"file": (path.name, file)}, data={"purpose": "model"})
    assert answer.status_code == 200, answer.text
    file_id: str = answer.json()["id"]
    return file_id


def run(client: TestClient, installation: Installation, model: str, **method: Any) -> JobRow:
    answer = client.post("/v1/quantization/jobs", json={"model": model, "method": method})
    assert answer.status_code == 201, answer.text
    return installation.wait(answer.json()["id"])


def artifact_folder(installation: Installation, name: str | None) -> Path:
    with installation.database.reading() as session:
        return artifacts.locate(ArtifactRepository(session).get(str(name)), installation.settings)


@pytest.mark.parametrize("name", ["tiny.tar.gz", "tiny.zip"])
def test_an_uploaded_archive_becomes_a_proven_artifact(
    client: TestClient, installation: Installation, model_folder: Path, tmp_path: Path, name: str
) -> None:
    file_id = upload(client, pack(model_folder / "tiny", tmp_path / name, prefix="tiny/"))
    with installation.worker():
        job = run(client, installation, file_id, type="none", dtype="bf16")
        again = run(client, installation, file_id, type="none", dtype="bf16")
    assert job.error is None
    assert (job.state, job.quantized_model, again.reused) == ("succeeded", f"{file_id}:bf16", True)
    assert job.quality is not None
    assert job.quality["kl_divergence"]["value"] < 1e-4
    assert client.delete(f"/v1/files/{file_id}").status_code == 200
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [file_id, f"{file_id}:bf16"]


def test_a_hostile_archive_fails_its_job_and_leaves_nothing(
    client: TestClient, installation: Installation, tmp_path: Path
) -> None:
    file_id = upload(client, write_tar(tmp_path / "evil.tar", [("config.json", b"{}"), ("../../evil.json", b"{}")]))
    with installation.worker():
        job = run(client, installation, file_id, type="none")
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["code"] == "unsafe_archive"
    assert "'../../evil.json'" in job.error["message"]
    left = folders(installation.settings.sources_folder / "files")
    assert [name for name in left if not name.endswith(".lock")] == []


def test_a_gguf_file_is_a_source_in_a_root_and_as_an_upload(
    client: TestClient, installation: Installation, model_folder: Path
) -> None:
    root = installation.settings.roots[0]
    shutil.copytree(model_folder / "tiny", root / "tiny")
    with installation.worker():
        made = run(client, installation, "tiny", type="gguf", quantization="Q8_0")
        assert made.error is None
        (root / "made").mkdir()
        gguf = shutil.copy(artifact_folder(installation, made.quantized_model) / "model.gguf", root / "made")
        in_root = run(client, installation, "made", type="none", dtype="fp32")
        uploaded = run(client, installation, upload(client, Path(gguf)), type="gguf", quantization="Q8_0")
    assert (in_root.error, in_root.quantized_model) == (None, "made/model.gguf:fp32")
    assert uploaded.error is None
    # The two are one source: the same content was unpacked once.
    sources = [row for row in _originals(installation) if row.name != "tiny"]
    assert len({row.path for row in sources}) == 1
    assert len({row.source_fingerprint for row in sources}) == 1
    assert inspect_checkpoint(Path(sources[0].path)).architecture == "LlamaForCausalLM"


def test_deleting_one_of_two_names_keeps_the_files_that_the_other_has(
    client: TestClient, installation: Installation, model_folder: Path, tmp_path: Path
) -> None:
    archive = pack(model_folder / "tiny", tmp_path / "tiny.tar")
    names = [upload(client, archive), upload(client, archive)]
    with installation.worker():
        for name in names:
            assert run(client, installation, name, type="none").error is None
    folder = Path(_originals(installation)[0].path)
    assert client.delete(f"/v1/models/{names[0]}").status_code == 200
    assert folder.is_dir()
    assert client.delete(f"/v1/models/{names[1]}").status_code == 200
    assert not folder.exists()


def _originals(installation: Installation) -> list[Any]:
    with installation.database.reading() as session:
        return [row for row in ArtifactRepository(session).list() if row.kind == "base"]
