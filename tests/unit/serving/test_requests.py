"""Requests as every engine gets them, and what is said to those that are wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_params

from app.domain.errors import BitmillError, InvalidParameter, UnsupportedField
from workers.serving.contract.call import parse_call
from workers.serving.contract.capabilities import LLAMA_CPP, REMOTE, TRANSFORMERS, VLLM
from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.completions import CompletionRequest, EmbeddingsRequest
from workers.serving.contract.fields import Extras
from workers.serving.contract.parsing import NOT_HONOURED, parse_request

HI = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def chat(**fields: Any) -> ChatCompletionRequest:
    return parse_request(ChatCompletionRequest, {"model": "m", "messages": HI, **fields})


def completion(**fields: Any) -> CompletionRequest:
    return parse_request(CompletionRequest, {"model": "m", "prompt": "Hi", **fields})


def test_null_counts_as_absent() -> None:
    messages = [{"role": "assistant", "content": "Hi", "tool_calls": None, "refusal": None, "function_call": None}]
    request = chat(temperature=None, tools=None, stop=None, max_tokens=5, messages=messages)
    assert (request.temperature, request.stops, request.token_limit) == (None, [], 5)
    assert request.messages[0].tool_calls is None


def test_the_newer_name_of_the_limit_comes_first() -> None:
    assert chat(max_tokens=5, max_completion_tokens=3).token_limit == 3


def test_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "developer", "content": parts}]).messages[0].text == "a\nb"


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        (ChatCompletionRequest, chat_params.CompletionCreateParamsBase),
        (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
        (EmbeddingsRequest, embedding_create_params.EmbeddingCreateParams),
    ],
)
def test_every_field_of_openais_client_is_known(kind: Any, params: Any) -> None:
    assert set(params.__annotations__) - set(kind.model_fields) - set(NOT_HONOURED) == set()


@pytest.mark.parametrize(
    ("fields", "param", "kind"),
    [
        ({"tools": []}, "tools", InvalidParameter),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools", UnsupportedField),
        ({"tools": [{"type": "function", "function": {"name": "has spaces"}}]}, "tools", InvalidParameter),
        ({"tool_choice": "auto"}, "tool_choice", InvalidParameter),
        ({"tools": [WEATHER], "tool_choice": "some"}, "tool_choice", UnsupportedField),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice",
            InvalidParameter,
        ),
        ({"response_format": {"type": "xml"}}, "response_format", UnsupportedField),
        ({"response_format": {"type": "json_schema"}}, "response_format", InvalidParameter),
        ({"store": True}, "store", UnsupportedField),
        ({"suffix": "x"}, "suffix", UnsupportedField),
        ({"audio": {}}, "audio", UnsupportedField),
        ({"unheard_of": 1}, "unheard_of", UnsupportedField),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", InvalidParameter),
        ({"messages": [{"role": "judge", "content": "x"}]}, "messages", UnsupportedField),
        ({"messages": [{"role": "user"}]}, "messages", InvalidParameter),
        ({"messages": [{"role": "user", "content": 5}]}, "messages", InvalidParameter),
        ({"messages": [{"role": "user", "content": "x", "mood": "glad"}]}, "messages", UnsupportedField),
        ({"temperature": 3}, "temperature", InvalidParameter),
        ({"temperature": "hot"}, "temperature", InvalidParameter),
        ({"top_p": 0}, "top_p", InvalidParameter),
        ({"n": 1000}, "n", InvalidParameter),
        ({"max_tokens": 0}, "max_tokens", InvalidParameter),
        ({"max_tokens": True}, "max_tokens", InvalidParameter),
        ({"stop": ""}, "stop", InvalidParameter),
        ({"stop": ["a", ""]}, "stop", InvalidParameter),
        ({"messages": []}, "messages", InvalidParameter),
        ({"messages": None}, "messages", InvalidParameter),
        ({"logit_bias": {"the": 1}}, "logit_bias", InvalidParameter),
        ({"top_logprobs": 3}, "top_logprobs", InvalidParameter),
        ({"stream_options": {"include_usage": True}}, "stream_options", InvalidParameter),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, Any], param: str, kind: type[BitmillError]) -> None:
    with pytest.raises(BitmillError) as raised:
        chat(**fields)
    assert type(raised.value) is kind
    assert raised.value.param == param
    assert f"`{param}" in raised.value.message
    assert "(" not in raised.value.message.split("`")[1]  # no name of a union's member


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_come_in_four_shapes(prompt: Any, prompts: Any) -> None:
    assert completion(prompt=prompt).prompts == prompts
    assert parse_request(EmbeddingsRequest, {"model": "m", "input": prompt}).inputs == prompts


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [-1], [1, "a"], {"text": "a"}])
def test_a_prompt_that_is_none(prompt: Any) -> None:
    with pytest.raises(InvalidParameter) as raised:
        completion(prompt=prompt)
    assert raised.value.param == "prompt"


def test_choices_that_nobody_sees_are_refused() -> None:
    assert completion(best_of=2, n=2).n == 2
    with pytest.raises(UnsupportedField) as raised:
        completion(best_of=3, n=2)
    assert raised.value.param == "best_of"


def test_no_tokens_are_asked_for_the_prompts_logprobs_only() -> None:
    assert completion(max_tokens=0, echo=True, logprobs=0).token_limit == 0
    for fields in ({}, {"echo": True}, {"logprobs": 1}):
        with pytest.raises(InvalidParameter) as raised:
            completion(max_tokens=0, **fields)
        assert raised.value.param == "max_tokens"


def test_an_engine_gets_what_it_needs() -> None:
    call = parse_call(
        "/v1/chat/completions",
        {"model": "m", "messages": HI, "store": False, "keep_alive": 3, "metadata": {"a": "b"}, "user": "u", "n": None},
    )
    assert call.body == {"model": "m", "messages": HI, "user": "u"}


@pytest.mark.parametrize(
    ("contract", "extra", "known"),
    [
        (LLAMA_CPP, {"repeat_penalty": 1.1}, True),
        (LLAMA_CPP, {"repetition_penalty": 1.1}, False),
        (TRANSFORMERS, {"repetition_penalty": 1.1}, True),
        (TRANSFORMERS, {"grammar": "root ::= [a]"}, False),
        (TRANSFORMERS, {"top_k": 5, "min_p": 0.1}, True),
        (VLLM, {"min_tokens": 5}, True),
        (REMOTE, {"mirostat": 2}, True),
    ],
)
def test_fields_beyond_openais_belong_to_engines(contract: Any, extra: dict[str, Any], known: bool) -> None:
    request = chat(**extra)
    if known:
        contract.check(request, engine="x")
        return
    with pytest.raises(UnsupportedField) as raised:
        contract.check(request, engine="x")
    assert raised.value.param == next(iter(extra))


def test_a_use_of_a_field_that_an_engine_cannot_honour() -> None:
    completion_with = completion(echo=True, logprobs=1)
    TRANSFORMERS.check(completion_with, engine="transformers")
    LLAMA_CPP.check(completion(echo=True), engine="llama_cpp")
    with pytest.raises(UnsupportedField) as raised:
        LLAMA_CPP.check(completion_with, engine="llama_cpp")
    assert raised.value.param == "echo"
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    looking = chat(messages=[{"role": "user", "content": picture}])
    VLLM.check(looking, engine="vllm")
    with pytest.raises(UnsupportedField) as raised:
        TRANSFORMERS.check(looking, engine="transformers")
    assert raised.value.param == "messages"


def test_contracts_speak_of_fields_that_there_are() -> None:
    for contract in (LLAMA_CPP, TRANSFORMERS, VLLM, REMOTE):
        assert contract.extras <= set(Extras.model_fields)


def test_reading_a_request_takes_well_under_a_millisecond() -> None:
    body = {"model": "m", "messages": HI * 20, "temperature": 0.5, "tools": [WEATHER] * 5, "stop": ["a", "b"]}
    times = []
    for _ in range(200):
        started = time.perf_counter()
        parse_call("/v1/chat/completions", body)
        times.append(time.perf_counter() - started)
    assert sorted(times)[100] < 0.001


@pytest.mark.parametrize("address", ["http://169.254.169.254/latest", "HTTPS://inside", " file:///etc/passwd"])
@pytest.mark.parametrize("nested", [True, False])
def test_vllm_fetches_nothing(address: str, nested: bool) -> None:
    """A request would reach what only the serving host can."""
    part = {"type": "image_url", "image_url": {"url": address} if nested else address}
    asked = parse_request(ChatCompletionRequest, {"model": "m", "messages": [{"role": "user", "content": [part]}]})
    with pytest.raises(UnsupportedField, match="data:") as refused:
        VLLM.check(asked, engine="vllm")
    assert refused.value.param == "messages"
    REMOTE.check(asked, engine="remote")
