"""The hub's downloads against a stand-in that speaks its HTTP."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.domain.errors import (
    BitmillError,
    CorruptCheckpoint,
    DiskFull,
    HubUnreachable,
    InvalidRequest,
    PickleCheckpoint,
    SourceNotFound,
)
from app.settings import Settings
from app.storage.pooling import Pooling, read_pooling
from tests.fakes.checkpoints import bare_checkpoint, write_safetensors
from tests.fakes.hub import COMMIT, FakeHub, running
from workers.sources.resolve import Source, resolve


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    folder = bare_checkpoint(tmp_path / "remote" / "llama")
    for name in ("modeling.py", "README.md", "pytorch_model.bin", "consolidated.safetensors"):
        (folder / name).write_text("not for downloading")
    for name in ("tokenizer.json", "chat_template.jinja", "merges.txt", "tokenizer.model"):
        (folder / name).write_text("{}")
    (folder / "original").mkdir()
    (folder / "original" / "params.json").write_text("{}")
    with running(FakeHub({"org/llama": folder})) as hub:
        yield hub


def _settings(tmp_path: Path, endpoint: str, **changes: object) -> Settings:
    values = {"data_dir": tmp_path / "data", "hub_endpoint": endpoint, "hub_timeout_seconds": 1.0, **changes}
    return Settings.model_validate(values)


def _resolve(name: str, settings: Settings) -> tuple[Source, list[float]]:
    fractions: list[float] = []
    source = resolve(name, settings, lambda fraction, stage: fractions.append(fraction))
    return source, fractions


def test_downloads_what_a_model_needs_and_nothing_else(tmp_path: Path, hub: FakeHub) -> None:
    source, fractions = _resolve("org/llama", _settings(tmp_path, hub.address))
    assert source.name == "org/llama"
    assert source.path == tmp_path / "data" / "sources" / "hub" / "org" / "llama" / COMMIT
    wanted = [
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
    ]
    assert sorted(path.name for path in source.path.iterdir()) == wanted
    assert sorted(hub.downloads()) == wanted
    for name in wanted:
        assert (source.path / name).read_bytes() == (hub.folders["org/llama"] / name).read_bytes()
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_a_model_for_embeddings_brings_its_pooling(tmp_path: Path, hub: FakeHub) -> None:
    folder = hub.folders["org/llama"]
    modules = [{"path": "", "type": "m.Transformer"}, {"path": "1_Pooling", "type": "m.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling", "onnx", "1_Pooling/deeper"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text('{"pooling_mode": "cls"}')
    source, _ = _resolve("org/llama", _settings(tmp_path, hub.address))
    assert read_pooling(source.path) == Pooling("cls", normalize=False)
    assert not (source.path / "onnx").exists()
    assert not (source.path / "1_Pooling" / "deeper").exists()


def test_shards_are_found_through_their_index(tmp_path: Path, hub: FakeHub) -> None:
    folder = hub.folders["org/llama"]
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "m-1.safetensors", {"a": ("U8", [3])})
    write_safetensors(folder / "m-2.safetensors", {"b": ("U8", [3])})
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}')
    source, _ = _resolve("org/llama@main", _settings(tmp_path, hub.address))
    assert source.name == "org/llama@main"
    assert [file.name for file in source.checkpoint.files] == ["m-1.safetensors", "m-2.safetensors"]
    assert "consolidated.safetensors" not in hub.downloads()


def test_an_index_with_a_shard_that_the_hub_lacks_is_refused(tmp_path: Path, hub: FakeHub) -> None:
    folder = hub.folders["org/llama"]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "m-9.safetensors"}}')
    with pytest.raises(CorruptCheckpoint, match=r"m-9.safetensors"):
        _resolve("org/llama", _settings(tmp_path, hub.address))


def test_a_commit_is_downloaded_once(tmp_path: Path, hub: FakeHub) -> None:
    settings = _settings(tmp_path, hub.address)
    first, _ = _resolve("org/llama", settings)
    hub.requests.clear()
    again, _ = _resolve("org/llama", settings)
    assert again == first
    assert hub.downloads() == []
    pinned, _ = _resolve(f"org/llama@{COMMIT}", settings)
    assert pinned.fingerprint == first.fingerprint
    assert hub.requests == ["GET /api/models/org/llama"]


def test_a_downloaded_commit_needs_no_network_and_a_branch_does(tmp_path: Path, hub: FakeHub) -> None:
    _resolve("org/llama", _settings(tmp_path, hub.address))
    offline = _settings(tmp_path, f"http://127.0.0.1:{_closed_port()}")
    assert _resolve(f"org/llama@{COMMIT}", offline)[0].checkpoint.parameter_count == 10
    with pytest.raises(HubUnreachable):
        _resolve("org/llama", offline)


def test_a_new_commit_is_another_snapshot(tmp_path: Path, hub: FakeHub) -> None:
    settings = _settings(tmp_path, hub.address)
    first, _ = _resolve("org/llama", settings)
    hub.commit = COMMIT[::-1]
    (hub.folders["org/llama"] / "tokenizer.json").write_text('{"new": 1}')
    second, _ = _resolve("org/llama", settings)
    assert second.path != first.path
    assert second.fingerprint != first.fingerprint


def test_an_interrupted_download_goes_on_where_it_was(tmp_path: Path, hub: FakeHub) -> None:
    settings = _settings(tmp_path, hub.address)
    hub.failing = {"model.safetensors"}
    with pytest.raises(HubUnreachable, match="500"):
        _resolve("org/llama", settings)
    hub.failing, before = set(), hub.downloads()
    hub.requests.clear()
    _resolve("org/llama", settings)
    assert "config.json" in before
    assert hub.downloads() == ["model.safetensors"]


def test_weights_that_arrive_changed_are_refused_and_fetched_again(tmp_path: Path, hub: FakeHub) -> None:
    settings = _settings(tmp_path, hub.address)
    hub.damaged = {"model.safetensors"}
    with pytest.raises(CorruptCheckpoint, match="the hub states"):
        _resolve("org/llama", settings)
    hub.damaged = set()
    assert _resolve("org/llama", settings)[0].checkpoint.parameter_count == 10


def test_concurrent_jobs_download_once(tmp_path: Path, hub: FakeHub) -> None:
    settings = _settings(tmp_path, hub.address)
    with ThreadPoolExecutor(8) as pool:
        sources = [source for source, _ in pool.map(lambda _: _resolve("org/llama", settings), range(8))]
    assert all(source == sources[0] for source in sources)
    assert sorted(hub.downloads()) == sorted(set(hub.downloads()))


def test_a_pickled_model_is_refused_before_any_download(tmp_path: Path, hub: FakeHub) -> None:
    (hub.folders["org/llama"] / "model.safetensors").unlink()
    with pytest.raises(PickleCheckpoint, match=r"pytorch_model.bin"):
        _resolve("org/llama", _settings(tmp_path, hub.address))
    assert hub.downloads() == []


def test_a_full_disk_is_noticed_before_the_download(tmp_path: Path, hub: FakeHub) -> None:
    with pytest.raises(DiskFull):
        _resolve("org/llama", _settings(tmp_path, hub.address, min_free_disk_bytes=2**60))
    assert hub.downloads() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("org/other", "no model 'org/other'"), ("org/llama@v9", "no revision 'v9' of 'org/llama'")],
)
def test_what_the_hub_does_not_have_is_not_found(tmp_path: Path, hub: FakeHub, name: str, message: str) -> None:
    with pytest.raises(SourceNotFound, match=message):
        _resolve(name, _settings(tmp_path, hub.address))


def test_a_gated_model_asks_for_a_token(tmp_path: Path, hub: FakeHub) -> None:
    hub.gated = {"org/llama"}
    with pytest.raises(InvalidRequest, match="BITMILL_HUB_TOKEN"):
        _resolve("org/llama", _settings(tmp_path, hub.address))


def test_the_token_is_sent_and_never_told(tmp_path: Path, hub: FakeHub) -> None:
    hub.token = "right-token"
    with pytest.raises(SourceNotFound) as caught:
        _resolve("org/llama", _settings(tmp_path, hub.address, hub_token="wrong-token"))
    assert "wrong-token" not in caught.value.message
    _resolve("org/llama", _settings(tmp_path, hub.address, hub_token="right-token"))


def test_who_stores_the_weights_is_not_shown_the_token(tmp_path: Path, hub: FakeHub) -> None:
    hub.token = "right-token"
    with running(FakeHub(hub.folders)) as storage:
        hub.storage = storage.address
        _resolve("org/llama", _settings(tmp_path, hub.address, hub_token="right-token"))
        assert storage.downloads() == ["model.safetensors"]
        assert set(storage.authorizations) == {None}


def test_a_commit_that_is_no_hash_never_becomes_a_path(tmp_path: Path, hub: FakeHub) -> None:
    hub.commit = "../../outside"
    with pytest.raises(HubUnreachable, match="BITMILL_HUB_ENDPOINT"):
        _resolve("org/llama", _settings(tmp_path, hub.address))


def _closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _failure(settings: Settings) -> tuple[BitmillError, float]:
    start = time.monotonic()
    with pytest.raises(HubUnreachable) as caught:
        _resolve("org/llama", settings)
    return caught.value, time.monotonic() - start


def test_a_refused_connection_fails_at_once(tmp_path: Path) -> None:
    error, seconds = _failure(_settings(tmp_path, f"http://127.0.0.1:{_closed_port()}"))
    assert seconds < 1
    assert "BITMILL_SOURCE_ROOTS" in error.message


def test_a_hub_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        _, seconds = _failure(_settings(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert 0.9 < seconds < 3
