import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import CorruptCheckpoint, IncompatibleModel, PickleCheckpoint, SourceNotFound
from app.storage import checkpoints
from app.storage.checkpoints import TensorInfo, fingerprint, inspect_checkpoint
from tests.fakes.checkpoints import bare_checkpoint, write_raw, write_safetensors

Header = dict[str, Any]


def test_a_whole_checkpoint_is_described(tmp_path: Path) -> None:
    folder = bare_checkpoint(tmp_path / "model")
    file = folder / "model.safetensors"
    found = inspect_checkpoint(folder)
    assert found.architecture == "LlamaForCausalLM"
    assert found.files == (file,)
    start = file.stat().st_size - 32
    assert found.tensors == {
        "a": TensorInfo("F32", (2, 3), file, start, start + 24),
        "b": TensorInfo("BF16", (4,), file, start + 24, start + 32),
    }
    assert (found.parameter_count, found.weight_bytes) == (10, 32)


def test_shards_are_joined(tmp_path: Path) -> None:
    found = inspect_checkpoint(_sharded(tmp_path))
    assert [file.name for file in found.files] == ["one.safetensors", "two.safetensors"]
    assert list(found.tensors) == ["a", "b"]


def _sharded(folder: Path, weight_map: Any = None) -> Path:
    (folder / "config.json").write_text('{"architectures": ["X"]}')
    write_safetensors(folder / "one.safetensors", {"a": ("U8", [3])})
    write_safetensors(folder / "two.safetensors", {"b": ("U8", [3])})
    chosen = {"a": "one.safetensors", "b": "two.safetensors"} if weight_map is None else weight_map
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": chosen}))
    return folder


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, "three.safetensors.*missing"),
        ({"a": "../one.safetensors"}, "must be a .safetensors file beside it"),
        ({"a": 7}, "must be a .safetensors file beside it"),
        ({"a": "one.bin"}, "must be a .safetensors file beside it"),
        ({}, "weight_map"),
        ([], "weight_map"),
        ({"a": "two.safetensors", "b": "one.safetensors"}, "'a' is in two.safetensors, but it is not"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "'c' is in two.safetensors, but it is not"),
    ],
)
def test_an_index_unlike_its_shards_is_refused(tmp_path: Path, weight_map: Any, message: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=message):
        inspect_checkpoint(_sharded(tmp_path, weight_map))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    _sharded(tmp_path)
    write_safetensors(tmp_path / "two.safetensors", {"a": ("U8", [1]), "b": ("U8", [3])})
    with pytest.raises(CorruptCheckpoint, match=r"'a' is in one.safetensors and in two.safetensors"):
        inspect_checkpoint(tmp_path)


def test_a_missing_folder_and_a_missing_config_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no folder 'nothing'"):
        inspect_checkpoint(tmp_path / "nothing")
    with pytest.raises(SourceNotFound, match=r"holds no config.json"):
        inspect_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}')
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(PickleCheckpoint, match="convert it to safetensors"):
        inspect_checkpoint(tmp_path)


def test_a_folder_without_weights_says_what_it_holds_instead(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}')
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(SourceNotFound, match=r"it holds adapter_model.safetensors"):
        inspect_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "\xff", "[" * 100_000, '{"architectures": []}', '{"architectures": "X"}', "{}"]
)
def test_a_config_that_says_nothing_usable_is_refused(tmp_path: Path, text: str) -> None:
    folder = bare_checkpoint(tmp_path)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptCheckpoint, match=r"config.json"):
        inspect_checkpoint(folder)


def test_a_quantized_model_is_refused_with_its_method(tmp_path: Path) -> None:
    config = {"architectures": ["X"], "quantization_config": {"quant_method": "gptq"}}
    (bare_checkpoint(tmp_path) / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleModel, match=r"already quantized with 'gptq'; quantize the original"):
        inspect_checkpoint(tmp_path)


def _entry(**changes: Any) -> Header:
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (_entry(dtype="F99"), 8, "unknown dtype 'F99'"),
        (_entry(dtype=None), 8, "no valid dtype"),
        (_entry(shape=[3]), 8, r"8 bytes, but F32 of shape \[3\] takes 12"),
        (_entry(shape=[-2]), 8, "no valid dtype, shape"),
        (_entry(shape=[True, 2]), 8, "no valid dtype, shape"),
        (_entry(shape=[2.0]), 8, "no valid dtype, shape"),
        (_entry(shape="2"), 8, "no valid dtype, shape"),
        (_entry(data_offsets=[8, 0]), 8, "gives tensor 't' -8 bytes"),
        (_entry(data_offsets=[0]), 8, "data_offsets"),
        (_entry(data_offsets=[0, 8, 8]), 8, "data_offsets"),
        ({"t": 5}, 8, "no valid dtype"),
        (_entry(), 7, "is truncated or its tensors overlap"),
        (_entry(), 0, "is truncated or its tensors overlap"),
        (_entry(), 9, r"bytes \d+ to \d+ belong to no tensor"),
        (_entry(data_offsets=[4, 12]), 12, "belong to no tensor"),
        ({**_entry(), "u": _entry(data_offsets=[4, 12])["t"]}, 12, "overlap"),
        ({**_entry(), "u": _entry()["t"]}, 8, "overlap"),
        ({**_entry(), "u": _entry(data_offsets=[12, 20])["t"]}, 20, "belong to no tensor"),
        ({"__metadata__": {"format": "pt"}}, 0, "no tensor data"),
    ],
)
def test_a_header_that_does_not_fit_the_data_is_refused(
    tmp_path: Path, header: Header, data: int, message: str
) -> None:
    write_raw(bare_checkpoint(tmp_path) / "model.safetensors", json.dumps(header).encode(), bytes(data))
    with pytest.raises(CorruptCheckpoint, match=message) as caught:
        inspect_checkpoint(tmp_path)
    assert "model.safetensors" in caught.value.message


def _write(header: bytes, length: int | None = None) -> Callable[[Path], None]:
    return lambda path: write_raw(path, header, b"", length=length)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "has 0 bytes, too few"),
        (lambda path: path.write_bytes(b"\1\0\0"), "has 3 bytes, too few"),
        (_write(b"{}", length=1000), "has 10 bytes, too few for .* header of 1000 bytes"),
        (_write(b"{}", length=2**64 - 1), "header of 18446744073709551615 bytes"),
        (_write(b"{"), "invalid header"),
        (_write(b""), "invalid header"),
        (_write(b"\xff\xfe{}"), "invalid header"),
        (_write(b"[]"), "JSON list"),
        (_write(b"[" * 100_000), "invalid header"),
        (_write(b'{"t": 1, "t": 2}'), "duplicate key 't'"),
        (_write(b'{"t": ' + b"9" * 5000 + b"}"), "invalid header"),
    ],
)
def test_a_damaged_beginning_is_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(bare_checkpoint(tmp_path) / "model.safetensors")
    with pytest.raises(CorruptCheckpoint, match=message):
        inspect_checkpoint(tmp_path)


def test_a_header_over_the_formats_limit_is_refused_unread(tmp_path: Path) -> None:
    path = bare_checkpoint(tmp_path) / "model.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little"))
    os.truncate(path, 200_000_000)
    with pytest.raises(CorruptCheckpoint, match="over the format's limit of 100000000"):
        inspect_checkpoint(tmp_path)


@pytest.mark.parametrize("cut", [1, 2, 8, 31, 32, 40, 150])
def test_every_truncation_is_noticed(tmp_path: Path, cut: int) -> None:
    path = bare_checkpoint(tmp_path) / "model.safetensors"
    os.truncate(path, path.stat().st_size - cut)
    with pytest.raises(CorruptCheckpoint, match="truncated"):
        inspect_checkpoint(tmp_path)


def test_the_headers_padding_and_metadata_and_empty_tensors_are_allowed(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, **_entry()}
    header["empty"] = {"dtype": "F16", "shape": [0, 4], "data_offsets": [8, 8]}
    header["scalar"] = {"dtype": "F16", "shape": [], "data_offsets": [8, 10]}
    write_raw(bare_checkpoint(tmp_path) / "model.safetensors", json.dumps(header).encode() + b"   ", bytes(10))
    assert inspect_checkpoint(tmp_path).parameter_count == 3


class TestFingerprint:
    def test_depends_on_contents_and_names_and_not_on_the_place(self, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        one, two = bare_checkpoint(tmp_path / "one"), bare_checkpoint(tmp_path / "two")
        assert fingerprint(one, cache) == fingerprint(two, cache)
        (two / "chat_template.jinja").write_text("{{ messages }}")
        assert fingerprint(one, cache) != fingerprint(two, cache)

    def test_ignores_what_is_no_part_of_the_model(self, tmp_path: Path) -> None:
        folder = bare_checkpoint(tmp_path / "model")
        before = fingerprint(folder, tmp_path / "cache")
        (folder / "README.md").write_text("x")
        (folder / "modeling.py").write_text("x")
        assert fingerprint(folder, tmp_path / "cache") == before

    def test_hashes_an_unchanged_file_once_and_a_changed_one_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = bare_checkpoint(tmp_path / "model")
        hashed: list[str] = []

        def counting(path: Path) -> str:
            hashed.append(path.name)
            return f"{len(hashed):064}"

        monkeypatch.setattr(checkpoints, "file_sha256", counting)
        first = fingerprint(folder, tmp_path / "cache")
        assert fingerprint(folder, tmp_path / "cache") == first
        assert sorted(hashed) == ["config.json", "model.safetensors"]
        os.utime(folder / "config.json", ns=(1, 1))
        assert fingerprint(folder, tmp_path / "cache") != first
        assert hashed[2:] == ["config.json"]

    def test_a_renamed_folder_needs_no_hashing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = fingerprint(bare_checkpoint(tmp_path / "one"), tmp_path / "cache")
        (tmp_path / "one").rename(tmp_path / "two")
        monkeypatch.setattr(checkpoints, "file_sha256", lambda path: pytest.fail("hashed again"))
        assert fingerprint(tmp_path / "two", tmp_path / "cache") == before

    def test_survives_a_damaged_cache(self, tmp_path: Path) -> None:
        folder = bare_checkpoint(tmp_path / "model")
        before = fingerprint(folder, tmp_path / "cache")
        for entry in (tmp_path / "cache").rglob("*.json"):
            entry.write_text("{")
        assert fingerprint(folder, tmp_path / "cache") == before


def test_the_tiny_llama_reads_as_safetensors_reads_it(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    from tests.fakes.checkpoints import tiny_llama

    found = inspect_checkpoint(tiny_llama(tmp_path, shards=2))
    assert len(found.files) >= 2
    for name, info in found.tensors.items():
        with safe_open(info.file, framework="pt") as file:
            tensor = file.get_tensor(name)
        assert (info.dtype, info.shape) == ("BF16", tuple(tensor.shape))
        data = info.file.read_bytes()[info.start : info.end]
        assert data == tensor.view(torch.uint8).numpy().tobytes()
