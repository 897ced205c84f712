"""A hub model's headers: who is asked for them, with which token, and how much is taken of the answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.errors import BitmillError, CorruptCheckpoint, HubUnreachable, SourceNotFound
from app.domain.estimates import ModelShape
from app.domain.model_names import parse_model_name
from app.settings import Settings
from app.storage import hub_headers, hub_reader
from app.storage.hub_headers import read_hub_model
from tests.fakes.checkpoints import bare_checkpoint, write_raw, write_safetensors
from tests.fakes.hub import FakeHub, running

TOKEN = "secret-token"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bare_checkpoint(tmp_path / "remote" / "llama")


@pytest.fixture
def hub(folder: Path) -> Iterator[FakeHub]:
    with running(FakeHub({"org/llama": folder}, token=TOKEN)) as hub:
        yield hub


@pytest.fixture
def other(folder: Path) -> Iterator[FakeHub]:
    """A server of somebody else's, with the same files for whoever asks."""
    with running(FakeHub({"org/llama": folder})) as other:
        yield other


def _read(hub: FakeHub, name: str = "org/llama", **changes: object) -> ModelShape:
    values = {"hub_endpoint": hub.address, "hub_token": TOKEN, "hub_timeout_seconds": 2.0, **changes}
    return read_hub_model(parse_model_name(name), Settings.model_validate(values))


def _shards(folder: Path, names: list[str]) -> None:
    index = {"weight_map": {f"tensor{number}": name for number, name in enumerate(names)}}
    (folder / INDEX).write_text(json.dumps(index))


def test_names_types_and_sizes_come_from_headers_alone(hub: FakeHub, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "m-1.safetensors")
    write_safetensors(folder / "m-2.safetensors", {"c": ("U8", [70])})
    _shards(folder, ["m-1.safetensors", "m-2.safetensors"])
    found = _read(hub)
    assert found.architecture == "LlamaForCausalLM"
    assert {name: (each.dtype, each.shape, each.size_bytes) for name, each in found.tensors.items()} == {
        "a": ("F32", (2, 3), 24),
        "b": ("BF16", (4,), 8),
        "c": ("U8", (70,), 70),
    }
    assert set(hub.authorizations) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "shard",
    [
        "{other}/org/llama/resolve/main/model.safetensors",
        "//{host}/x.safetensors",
        "../../b/c/x.safetensors",
        "x.bin",
        7,
    ],
)
def test_an_index_names_files_beside_it_and_nobody_elses(
    hub: FakeHub, other: FakeHub, folder: Path, shard: object
) -> None:
    if isinstance(shard, str):
        shard = shard.format(other=other.address, host=other.address.removeprefix("http://"))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CorruptCheckpoint, match=r"must be a .safetensors file beside it"):
        _read(hub)
    assert other.authorizations == []


def test_a_redirect_to_another_server_is_followed_without_the_token(hub: FakeHub, other: FakeHub) -> None:
    hub.storage = other.address
    assert set(_read(hub).tensors) == {"a", "b"}
    assert other.authorizations == [None]


def test_a_redirect_within_the_hub_keeps_the_token(hub: FakeHub, folder: Path) -> None:
    hub.folders["new/llama"] = folder
    hub.moved = {"org/llama": "new/llama"}
    assert set(_read(hub).tensors) == {"a", "b"}
    assert set(hub.authorizations) == {f"Bearer {TOKEN}"}


def test_redirects_in_a_circle_end(hub: FakeHub) -> None:
    hub.storage = hub.address
    with pytest.raises(HubUnreachable, match="redirects"):
        _read(hub)


def test_a_server_without_ranges_is_left_after_the_header(hub: FakeHub) -> None:
    hub.endless = {WEIGHTS}
    assert set(_read(hub).tensors) == {"a", "b"}


def test_a_header_beyond_the_first_bytes_is_read_whole(hub: FakeHub, folder: Path) -> None:
    write_safetensors(folder / WEIGHTS, {f"{'long' * 40}.{number}": ("U8", [1]) for number in range(1000)})
    assert len(_read(hub).tensors) == 1000


@pytest.mark.parametrize(("file", "limit"), [("config.json", 2**20), (INDEX, 2**20)])
def test_what_never_ends_is_refused(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, limit: int
) -> None:
    monkeypatch.setattr(hub_headers, "MAX_JSON_BYTES", limit)
    (folder / INDEX).write_text("{}")
    hub.endless = {file}
    with pytest.raises(CorruptCheckpoint, match=f"{file} of 'org/llama' on the hub is larger than {limit}"):
        _read(hub)


def test_all_files_together_have_a_limit(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_reader, "MAX_BYTES", 2**20)
    for number in range(20):
        write_raw(folder / f"{number}.safetensors", b" " * 99_000 + b"{}", b"")
    _shards(folder, [f"{number}.safetensors" for number in range(20)])
    with pytest.raises(HubUnreachable, match="more than 1048576 bytes"):
        _read(hub)


def test_an_index_of_too_many_shards_is_refused_at_once(hub: FakeHub, folder: Path) -> None:
    _shards(folder, [f"{number}.safetensors" for number in range(1001)])
    with pytest.raises(CorruptCheckpoint, match="1001 shards"):
        _read(hub)
    assert hub.downloads() == ["config.json", INDEX]


def test_a_server_that_dribbles_is_given_up_at_the_deadline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_reader, "DEADLINE_SECONDS", 0.5)
    hub.endless, hub.pause_seconds = {WEIGHTS}, 0.1
    start = time.monotonic()
    with pytest.raises(HubUnreachable, match=r"not read within 0\.5 seconds"):
        _read(hub)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "not an object"),
        (b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}', "no valid dtype, shape"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, -8]}}', "no valid dtype, shape"),
        (b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}', "unknown dtype"),
        (b"{}", "no tensor data"),
    ],
)
def test_a_header_that_cannot_be_is_refused(hub: FakeHub, folder: Path, header: bytes, message: str) -> None:
    write_raw(folder / WEIGHTS, header, bytes(8))
    with pytest.raises(CorruptCheckpoint, match=message):
        _read(hub)


@pytest.mark.parametrize("architectures", [None, [], 5, [5], "Llama"])
def test_a_config_without_an_architecture_has_none(hub: FakeHub, folder: Path, architectures: object) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": architectures}))
    assert _read(hub).architecture == "unknown"


def test_the_index_that_cannot_be_read_is_not_taken_for_none(hub: FakeHub) -> None:
    hub.failing = {INDEX}
    with pytest.raises(HubUnreachable, match="HTTP status 500"):
        _read(hub)


@pytest.mark.parametrize(
    ("name", "changes", "kind"),
    [
        ("org/nothing", {}, SourceNotFound),
        ("org/llama@refs/pr/1", {}, SourceNotFound),
        ("org/llama", {"hub_token": "wrong-token"}, SourceNotFound),
    ],
)
def test_what_the_hub_does_not_show_is_not_found(
    hub: FakeHub, name: str, changes: dict[str, object], kind: type[BitmillError]
) -> None:
    with pytest.raises(kind, match="BITMILL_HUB_TOKEN") as caught:
        _read(hub, name, **changes)
    assert "wrong-token" not in caught.value.message
