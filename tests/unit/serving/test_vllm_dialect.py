"""vLLM's dialect against a server that answers as told."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.domain.errors import ContextLengthExceeded, InvalidParameter, UnsupportedField
from tests.fakes.upstream import USAGE, Server, chat, failure
from workers.serving.dialects.base import DONE, event, streamed
from workers.serving.dialects.vllm import VllmDialect

HI = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "now"}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
LONGEST = 100


def tokenize(body: dict[str, Any]) -> httpx.Response:
    """A token for each character of what the template shows, which is everything."""
    count = len(json.dumps({name: body[name] for name in ("messages", "tools", "prompt") if name in body}))
    return httpx.Response(200, json={"count": count, "max_model_len": LONGEST})


def only_words(body: dict[str, Any]) -> httpx.Response:
    """A template without tools, which stumbles over their results."""
    if any(message["role"] == "tool" for message in body["messages"]):
        return failure(400, "unknown role")(body)
    return httpx.Response(200, json={"count": 9, "max_model_len": LONGEST})


def said(content: str) -> Any:
    def reply(body: dict[str, Any]) -> httpx.Response:
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": USAGE})

    return reply


def test_what_it_honours_passes_unchanged() -> None:
    server = Server(v1__chat__completions=chat)
    server.ask(CHAT, VllmDialect(), messages=HI, temperature=1, logprobs=True, top_logprobs=2)
    ((_, body),) = server.asked
    assert body["top_logprobs"] == 2


def test_several_choices_are_asked_for_one_by_one() -> None:
    server = Server(v1__chat__completions=chat)
    _, answer = server.ask(CHAT, VllmDialect(), messages=HI, n=2, temperature=0, seed=5)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["5", "6"]
    assert not any("n" in body for _, body in server.asked)
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_a_forced_call_follows_our_grammar_and_is_read_here() -> None:
    server = Server(v1__chat__completions=said('[{"name": "now", "arguments": {}}]'), tokenize=tokenize)
    _, answer = server.ask(CHAT, VllmDialect(), messages=HI, tools=TOOLS, tool_choice="required")
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    _, body = server.asked[-1]
    assert body["tools"] == TOOLS
    assert body["tool_choice"] == "none"
    assert body["structured_outputs"]["grammar"].startswith('start: "[" call')


def test_a_stream_of_a_forced_call_tells_it_whole() -> None:
    def pieces(body: dict[str, Any]) -> httpx.Response:
        async def events() -> Any:
            yield event(
                {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
            )
            for text in ('[{"name": "now", ', '"arguments": {}}]'):
                yield event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
            yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            yield event({"choices": [], "usage": USAGE})
            yield DONE

        async def close() -> None:
            """Nothing is open beside the generator."""

        return streamed(events(), close)

    server = Server(v1__chat__completions=pieces, tokenize=tokenize)
    _, events = server.ask(CHAT, VllmDialect(), messages=HI, tools=TOOLS, tool_choice="required", stream=True)
    choices = [choice for value in events for choice in value["choices"]]
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in choices] == [None, "tool_calls"]
    assert choices[1]["delta"]["tool_calls"][0]["function"]["name"] == "now"


def test_a_schema_that_cannot_be_followed_is_refused_before() -> None:
    server = Server(v1__chat__completions=chat)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(InvalidParameter) as raised:
        server.ask(CHAT, VllmDialect(), messages=HI, response_format=schema)
    assert raised.value.param == "response_format"
    assert server.asked == []


def test_a_template_is_asked_once_what_it_has_a_place_for() -> None:
    server, dialect = Server(v1__chat__completions=chat, tokenize=tokenize), VllmDialect()
    for _ in range(2):
        server.ask(CHAT, dialect, messages=HI, tools=TOOLS)
    assert [path for path, _ in server.asked].count("/tokenize") == 4


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": HI, "tools": TOOLS}, "tools"),
        ({"messages": [*HI, {"role": "tool", "tool_call_id": "x", "content": "sunny"}]}, "messages"),
    ],
)
def test_a_template_without_tools_takes_none(given: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedField) as raised:
        Server(v1__chat__completions=chat, tokenize=only_words).ask(CHAT, VllmDialect(), **given)
    assert raised.value.param == param


def test_tools_and_a_schema_exclude_each_other() -> None:
    with pytest.raises(UnsupportedField, match="'vllm' cannot honour `response_format`"):
        Server(tokenize=tokenize).ask(CHAT, VllmDialect(), messages=HI, tools=TOOLS, response_format=SCHEMA)


def scored(body: dict[str, Any]) -> httpx.Response:
    found = {
        "tokens": ["A", ""],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"": -3.0, "B": -1.5}],
        "text_offset": [0, 1],
    }
    choice = {"index": 0, "text": "A", "logprobs": found, "finish_reason": "length"}
    return httpx.Response(200, json={"choices": [choice], "usage": USAGE})


def test_logprobs_of_completions_have_openais_shape() -> None:
    def ask(top: int) -> dict[str, Any]:
        _, answer = Server(v1__completions=scored).ask(COMPLETIONS, VllmDialect(), prompt="A", logprobs=top)
        found: dict[str, Any] = answer["choices"][0]["logprobs"]
        return found

    assert ask(0)["top_logprobs"] is None
    # Two tokens have the same text, and the better one counts.
    assert ask(2)["top_logprobs"] == [None, {"": -1.0, "B": -1.5}]


def test_a_prompt_that_is_scored_has_no_output() -> None:
    server = Server(v1__completions=scored)
    _, answer = server.ask(COMPLETIONS, VllmDialect(), prompt=["A", "A"], echo=True, logprobs=1, max_tokens=0)
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 0, "total_tokens": 6}


def refuses_beyond(limit: int) -> Any:
    def reply(body: dict[str, Any]) -> httpx.Response:
        wanted = body.get("max_completion_tokens") or body["max_tokens"]
        return chat(body) if wanted <= limit else failure(400, "too many")(body)

    return reply


def test_a_limit_beyond_the_context_is_lowered_to_what_there_is_room_for() -> None:
    length = len(json.dumps({"messages": HI}))
    server = Server(v1__chat__completions=refuses_beyond(LONGEST - length), tokenize=tokenize)
    status, _ = server.ask(CHAT, VllmDialect(), messages=HI, max_completion_tokens=10 * LONGEST)
    assert status == 200
    assert server.asked[-1][1]["max_tokens"] == LONGEST - length
    assert "max_completion_tokens" not in server.asked[-1][1]


@pytest.mark.parametrize(
    ("path", "given", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x" * LONGEST}]}, "messages"),
        (COMPLETIONS, {"prompt": ["A", "x" * LONGEST]}, "prompt"),
        (COMPLETIONS, {"prompt": [1] * LONGEST}, "prompt"),
        ("/v1/embeddings", {"input": "x" * LONGEST}, "input"),
    ],
)
def test_a_prompt_longer_than_the_context(path: str, given: dict[str, Any], param: str) -> None:
    refused = failure(400, "too long")
    server = Server(v1__chat__completions=refused, v1__completions=refused, v1__embeddings=refused, tokenize=tokenize)
    with pytest.raises(ContextLengthExceeded) as raised:
        server.ask(path, VllmDialect(), **given)
    assert raised.value.param == param


def test_another_refusal_stays_one() -> None:
    server = Server(v1__chat__completions=failure(400, "no"), tokenize=tokenize)
    status, answer = server.ask(CHAT, VllmDialect(), messages=HI, max_tokens=3)
    assert (status, answer["error"]["message"]) == (400, "no")


@pytest.mark.parametrize(("path", "given"), [(CHAT, {"messages": HI}), ("/v1/embeddings", {"input": "A"})])
def test_a_model_of_another_kind(path: str, given: dict[str, Any]) -> None:
    def nowhere(body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(404, json={"detail": "Not Found"})

    server = Server(v1__chat__completions=nowhere, v1__embeddings=nowhere)
    with pytest.raises(InvalidParameter) as raised:
        server.ask(path, VllmDialect(), **given)
    assert raised.value.param == "model"


def test_a_model_that_is_not_loaded_there_is_its_own_refusal() -> None:
    server = Server(v1__chat__completions=failure(404, "no adapter of that name"))
    assert server.ask(CHAT, VllmDialect(), messages=HI)[0] == 404
