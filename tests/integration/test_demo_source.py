"""The demo model, unpacked for real."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from app.domain.errors import SourceNotFound
from app.settings import Settings
from workers.sources.resolve import Source, resolve

NAME = "demo/smollm2-135m-instruct"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    return resolve(NAME, settings, lambda fraction, stage: None)


@pytest.mark.slow
def test_it_is_a_plain_bfloat16_checkpoint(source: Source) -> None:
    assert source.name == NAME
    assert source.checkpoint.architecture == "LlamaForCausalLM"
    assert source.checkpoint.parameter_count == 134_515_008
    assert {tensor.dtype for tensor in source.checkpoint.tensors.values()} == {"BF16"}
    text = (source.path / "config.json").read_text() + (source.path / "tokenizer_config.json").read_text()
    assert "name_or_path" not in text
    assert json.loads((source.path / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.slow
def test_it_answers_and_stops(source: Source) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path)
    model = AutoModelForCausalLM.from_pretrained(source.path)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=60, do_sample=False)
    answer = tokenizer.decode(output[0][inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_its_tokenizer_splits_text_as_llama_cpp_does(source: Source) -> None:
    import llama_cpp
    from transformers import AutoTokenizer

    from tests.fakes.checkpoints import TEXT
    from workers.sources.demo import find_gguf

    tokenizer = AutoTokenizer.from_pretrained(source.path)
    reference = llama_cpp.Llama(str(find_gguf()), vocab_only=True, verbose=False)
    for text in TEXT:
        expected = reference.tokenize(text.encode(), add_bos=False, special=False)
        assert tokenizer(text)["input_ids"] == expected


def test_without_its_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceNotFound, match=r"bitmill\[demo\]"):
        resolve(NAME, Settings(data_dir=tmp_path), lambda fraction, stage: None)
