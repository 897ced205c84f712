"""`bitmill export` and `bitmill push`, against the API on a real port and a stand-in for the hub."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from click.testing import CliRunner

from app.cli.main import cli
from app.client import BitmillClient, RequestFailed
from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.domain.evaluation import EvaluationResult
from app.main import create_app
from app.persistence.artifacts import ArtifactRepository
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage import artifacts
from tests.fakes.dispatcher import RecordingDispatcher
from tests.fakes.hub import FakeHub, running
from tests.unit.domain.test_cards import QUALITY

MODEL = "org/tiny:bf16"
WEIGHTS = bytes(range(256)) * 9000  # larger than one piece of a download


@pytest.fixture
def folder(settings: Settings) -> Path:
    """An artifact as a job leaves it."""
    made = settings.artifacts_folder / "artifact-1"
    (made / "sub").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(WEIGHTS)
    (made / "config.json").write_text("{}")
    (made / "sub" / "more.txt").write_text("more")
    (made / "README.md").write_text("old card")
    artifacts.seal(made)
    return made


@pytest.fixture
def url(settings: Settings, sqlite_database: Database, folder: Path) -> Iterator[str]:
    def row(name: str, **values: object) -> ArtifactRow:
        common = {
            "name": name, "format": ArtifactFormat.SAFETENSORS, "source_fingerprint": "0" * 64, "key": "0" * 64,
            "versions": {"torch": "2"}, "size_bytes": 1, "parameter_count": 1, "bits_per_weight": 16.0,
            "tensor_types": {"BF16": 1}, "manifest_sha256": "0" * 64, "created_at": time.time(),
        }  # fmt: skip
        return ArtifactRow(**(common | values))

    with sqlite_database.transaction() as session:
        repository = ArtifactRepository(session)
        repository.add(row("org/tiny", id="artifact-0", kind=ArtifactKind.BASE, path="/nowhere", source=None))
        repository.add(
            row(
                MODEL,
                id="artifact-1",
                kind=ArtifactKind.QUANTIZED,
                path="artifact-1",
                source="org/tiny",
                method={"type": "none", "dtype": "bf16"},
                quality=QUALITY,
                evaluation=EvaluationResult().model_dump(mode="json"),
            )
        )
    config = uvicorn.Config(create_app(settings, dispatcher=RecordingDispatcher()), port=0, log_level="warning")
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def command(url: str, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("BITMILL_URL", url)
    return CliRunner()


def test_an_export_is_whole_and_has_a_fresh_card(command: CliRunner, tmp_path: Path) -> None:
    target = tmp_path / "out"
    done = command.invoke(cli, ["export", MODEL, str(target)])
    assert done.exit_code == 0, done.output
    assert (target / "model.safetensors").read_bytes() == WEIGHTS
    assert (target / "sub" / "more.txt").read_text() == "more"
    assert "KL divergence" in (target / "README.md").read_text()
    assert json.loads((target / "quality.json").read_text())["name"] == MODEL
    assert not list(target.rglob("*.partial"))


def test_an_export_goes_on_where_it_stopped(command: CliRunner, url: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "model.safetensors.partial").write_bytes(WEIGHTS[:1000])
    (target / "config.json").write_text("damaged")
    assert command.invoke(cli, ["export", MODEL, str(target)]).exit_code == 0
    assert (target / "model.safetensors").read_bytes() == WEIGHTS
    assert (target / "config.json").read_text() == "{}"
    with BitmillClient(url) as client:
        assert b"".join(client.download(MODEL, "model.safetensors", start=1000)) == WEIGHTS[1000:]


def test_a_part_of_something_else_is_not_kept(command: CliRunner, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "model.safetensors.partial").write_bytes(b"x" * 1000)
    failed = command.invoke(cli, ["export", MODEL, str(target)])
    assert (failed.exit_code, "wrong checksum" in failed.output) == (1, True)
    assert command.invoke(cli, ["export", MODEL, str(target)]).exit_code == 0
    assert (target / "model.safetensors").read_bytes() == WEIGHTS


def test_the_list_of_files_has_true_checksums(url: str) -> None:
    with BitmillClient(url) as client:
        for file in client.model_files(MODEL):
            content = b"".join(client.download(MODEL, file["name"]))
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size_bytes"], file["sha256"])


@pytest.mark.parametrize("name", ["../../bitmill.db", "nothing.txt", "manifest.json"])
def test_nothing_but_the_listed_files_is_given_away(url: str, name: str) -> None:
    with BitmillClient(url) as client, pytest.raises(RequestFailed, match=r"has no file|does not exist"):
        list(client.download(MODEL, name))


def test_originals_are_not_exported(command: CliRunner, tmp_path: Path) -> None:
    failed = command.invoke(cli, ["export", "org/tiny", str(tmp_path / "out")])
    assert (failed.exit_code, "original" in failed.output) == (1, True)


def test_a_push_puts_every_file_on_the_hub(command: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(FakeHub(token="secret")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        done = command.invoke(cli, ["push", MODEL, "org/tiny-bf16", "--folder", str(tmp_path / "kept")])
        assert done.exit_code == 0, (done.output, done.exception)
        assert f"{hub.address}/org/tiny-bf16/commit/" in done.output
        uploaded = hub.uploads["org/tiny-bf16"]
        kept = tmp_path / "kept"
        assert uploaded == {
            path.relative_to(kept).as_posix(): path.read_bytes() for path in kept.rglob("*") if path.is_file()
        }
        assert "model.safetensors" in uploaded


def test_a_refused_push_says_why(command: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(FakeHub(token="secret")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "wrong")
        failed = command.invoke(cli, ["push", MODEL, "org/tiny-bf16"])
        assert (failed.exit_code, "did not take 'org/tiny-bf16'" in failed.output) == (1, True)
