"""GGUF files as sources: the same weights, the same tokens, the same end of turn; and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from app.domain.errors import (
    BitmillError,
    CorruptCheckpoint,
    DiskFull,
    IncompatibleModel,
    InsufficientMemory,
    UnsupportedArchitecture,
)
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from app.storage.sources import imported_folder
from tests.fakes.checkpoints import CHAT_TEMPLATE, EOS, TEXT, tiny_llama
from tests.fakes.gguf import convert_tiny, write_metadata
from workers.quantization.gguf.pretokenizer import ALIASES, KNOWN
from workers.sources.gguf_import import import_gguf, unpack
from workers.sources.gguf_metadata import read_gguf
from workers.sources.gguf_rope import llama3_factors, llama3_parameters, rope_parameters
from workers.sources.gguf_tokenizer import save_tokenizer
from workers.sources.resolve import resolve

# Spaces, digits and punctuation in the ways that tell one rule from another.
TRICKY = (
    "it's 12345  words,  they'LL say: \"x==y\"?!\n\n  \tend \n",
    "a.b c$d <tag> 3.14159 100000",
    "€5 ½ ² 日本 12",
    "  ",
    "",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("original") / "tiny", tie_word_embeddings=True)


def quiet(fraction: float, stage: str) -> None:
    """Reports to nobody."""


def state_of(folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict())


@pytest.mark.parametrize("tied", [True, False])
def test_the_unpacked_weights_are_the_original_ones(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    original = tiny_llama(tmp_path / "tiny", tie_word_embeddings=tied, key_value_heads=1)
    unpacked = import_gguf(convert_tiny(original, tmp_path / "tiny.gguf", monkeypatch), settings, quiet)
    expected, found = state_of(original), state_of(unpacked)
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
    assert {tensor.dtype for tensor in found.values()} == {tensor.dtype for tensor in expected.values()}
    names = sorted(path.name for path in unpacked.iterdir())
    assert names == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_template_and_special_tokens_are_kept(
    original: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    unpacked = import_gguf(convert_tiny(original, tmp_path / "tiny.gguf", monkeypatch), settings, quiet)
    expected, found = AutoTokenizer.from_pretrained(original), AutoTokenizer.from_pretrained(unpacked)
    assert (unpacked / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(found, name) == getattr(expected, name)
        for file in ("config.json", "generation_config.json"):
            assert json.loads((unpacked / file).read_text())[name] == getattr(expected, name)
    messages = [{"role": "user", "content": "Numbers such as 42?" + EOS}]
    templated = [
        tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"] for tokenizer in (expected, found)
    ]
    assert templated[0] == templated[1]


@pytest.mark.parametrize("pre", [*KNOWN.values(), *ALIASES])
def test_text_is_split_as_llama_cpp_splits_it(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pre: str
) -> None:
    import llama_cpp
    from transformers import AutoTokenizer

    gguf = convert_tiny(original, tmp_path / "tiny.gguf", monkeypatch, pre=pre)
    save_tokenizer(gguf, read_gguf(gguf), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    reference = llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False)
    for text in TEXT + TRICKY:
        # With add_bos llama.cpp adds that token if the file's pre-tokenizer or its keys ask for it.
        expected = reference.tokenize(text.encode(), add_bos=True, special=True)
        assert tokenizer(text)["input_ids"] == expected, text


def test_a_chat_ends_with_the_turn_as_well_as_with_the_text(tmp_path: Path) -> None:
    def fill(writer: GGUFWriter) -> None:
        writer.add_eos_token_id(7)
        writer.add_eot_token_id(9)

    assert read_gguf(write_metadata(tmp_path / "m.gguf", fill)).end_token_ids() == [7, 9]


def test_the_same_content_is_unpacked_once(
    original: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = import_gguf(convert_tiny(original, tmp_path / "a.gguf", monkeypatch), settings, quiet)
    monkeypatch.setattr("workers.sources.gguf_import.unpack", lambda *arguments: pytest.fail("unpacked again"))
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes())
    assert import_gguf(tmp_path / "b.gguf", settings, quiet) == first
    assert first.parent == imported_folder("x", settings).parent


def test_a_changed_importer_imports_again(
    original: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = convert_tiny(original, tmp_path / "a.gguf", monkeypatch)
    first = import_gguf(gguf, settings, quiet)
    monkeypatch.setattr("app.storage.sources.IMPORT_VERSION", 1000)
    second = import_gguf(gguf, settings, quiet)
    assert second != first
    assert inspect_checkpoint(second).tensors.keys() == inspect_checkpoint(first).tensors.keys()


def test_a_gguf_under_the_roots_is_a_source_by_file_and_by_folder(
    original: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "models"
    (root / "org" / "tiny").mkdir(parents=True)
    gguf = convert_tiny(original, root / "org" / "tiny" / "tiny.gguf", monkeypatch)
    rooted = settings.model_copy(update={"source_roots": (root,)})
    by_folder = resolve("org/tiny", rooted, quiet)
    by_file = resolve(str(gguf), rooted, quiet)
    assert (by_folder.name, by_file.name) == ("org/tiny", "org/tiny/tiny.gguf")
    assert by_folder.path == by_file.path
    assert by_folder.fingerprint == by_file.fingerprint
    assert by_file.checkpoint.architecture == "LlamaForCausalLM"


def refused(gguf: Path, settings: Settings, error: type[BitmillError]) -> str:
    with pytest.raises(error) as caught:
        import_gguf(gguf, settings, quiet)
    left = settings.sources_folder / "files"
    assert [path.name for path in left.iterdir() if not path.name.endswith(".lock")] == []
    return caught.value.message


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\3\0\0\0", b"no model at all, but long enough for a header"])
def test_what_is_no_gguf_file_is_corrupt(tmp_path: Path, settings: Settings, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    assert "'m.gguf' is no whole GGUF file" in refused(tmp_path / "m.gguf", settings, CorruptCheckpoint)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_gguf_file_is_corrupt(
    original: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    gguf = convert_tiny(original, tmp_path / "m.gguf", monkeypatch)
    gguf.write_bytes(gguf.read_bytes()[: int(gguf.stat().st_size * share)])
    refused(gguf, settings, CorruptCheckpoint)


@pytest.mark.parametrize("architecture", ["clip", "mamba9", "t5"])
def test_an_architecture_that_cannot_be_unpacked_is_named(
    tmp_path: Path, settings: Settings, architecture: str
) -> None:
    gguf = write_metadata(tmp_path / "m.gguf", lambda writer: None, architecture=architecture)
    assert repr(architecture) in refused(gguf, settings, UnsupportedArchitecture)


def test_a_pre_tokenizer_that_is_not_known_is_named(
    original: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = convert_tiny(original, tmp_path / "m.gguf", monkeypatch, pre="deepseek-coder")
    message = refused(gguf, settings, UnsupportedArchitecture)
    assert "'deepseek-coder'" in message
    assert "smollm" in message


def test_a_tokenizer_of_another_family_is_named(tmp_path: Path) -> None:
    gguf = write_metadata(tmp_path / "m.gguf", lambda writer: writer.add_tokenizer_model("rwkv"))
    with pytest.raises(UnsupportedArchitecture, match="'rwkv'"):
        save_tokenizer(gguf, read_gguf(gguf), tmp_path)


def test_one_part_of_several_says_how_to_join_them(tmp_path: Path, settings: Settings) -> None:
    gguf = write_metadata(tmp_path / "m.gguf", lambda writer: writer.add_uint16("split.count", 3))
    assert "llama-gguf-split --merge" in refused(gguf, settings, IncompatibleModel)


def test_missing_weights_are_refused_and_not_made_up(
    original: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.quantization.gguf import converter

    plan = converter._plan
    monkeypatch.setattr(converter, "_plan", lambda *arguments: plan(*arguments)[:-1])
    gguf = convert_tiny(original, tmp_path / "m.gguf", monkeypatch)
    assert "missing_keys" in refused(gguf, settings, UnsupportedArchitecture)


def test_want_of_room_is_said_before_unpacking(
    original: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = convert_tiny(original, tmp_path / "m.gguf", monkeypatch)
    refused(gguf, settings.model_copy(update={"min_free_disk_bytes": 10**18}), DiskFull)
    monkeypatch.setattr("workers.sources.gguf_import.BYTES_PER_PARAMETER", 10**12)
    assert "bytes of memory" in refused(gguf, settings, InsufficientMemory)


@pytest.mark.parametrize(("factor", "base", "size"), [(8.0, 500_000.0, 128), (32.0, 500_000.0, 64)])
def test_llama_3s_rotary_scaling_is_recognized(factor: float, base: float, size: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = llama3_parameters(llama3_factors(size // 2, base, factor).astype(np.float32), base)
    config = LlamaConfig(head_dim=size, max_position_embeddings=131_072, rope_parameters=parameters)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = base ** -(np.arange(0, size, 2) / size)
    np.testing.assert_allclose(plain / frequencies.numpy(), llama3_factors(size // 2, base, factor), rtol=1e-5)
    assert parameters["factor"] == factor


def test_other_rotary_scaling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleModel, match="frequency factors"):
        llama3_parameters(np.linspace(1.0, 4.0, 32), 10_000.0)

    def fill(writer: GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "yarn")

    with pytest.raises(IncompatibleModel, match="'yarn'"):
        rope_parameters(read_gguf(write_metadata(tmp_path / "m.gguf", fill)))


def test_unpacking_reports_what_it_does(
    original: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = convert_tiny(original, tmp_path / "m.gguf", monkeypatch)
    (tmp_path / "out").mkdir()
    stages: list[str] = []
    unpack(gguf, tmp_path / "out", settings, lambda fraction, stage: stages.append(stage))
    assert stages == ["reading the GGUF file", "unpacking the GGUF file"]
