"""llama.cpp's dialect against a server that answers as told: what it is asked, and what becomes of its answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.domain.errors import BitmillError, ContextLengthExceeded, EngineFailed, InvalidParameter
from tests.fakes.upstream import USAGE, Reply, Server, chat, failure, obeying, text
from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.parsing import parse_request
from workers.serving.dialects.base import DONE, event, streamed
from workers.serving.dialects.json_messages import answer_grammar
from workers.serving.dialects.llama_cpp import LlamaCppDialect
from workers.serving.dialects.llama_cpp_edits import JsonEdit

HI = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "now"}}]


def ask(server: Server, path: str, dialect: LlamaCppDialect | None = None, **body: Any) -> tuple[int, Any]:
    return server.ask(path, dialect or LlamaCppDialect(), **body)


def text_stream(body: dict[str, Any]) -> httpx.Response:
    async def events() -> Any:
        yield b"data: null\n\n"
        yield event({"choices": [{"index": 0, "text": "a", "finish_reason": None}]})
        yield event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}], "usage": USAGE})
        yield DONE

    async def close() -> None:
        """Nothing is open beside the generator."""

    return streamed(events(), close)


def test_each_choice_is_asked_for_with_a_seed_of_its_own() -> None:
    server = Server(v1__chat__completions=chat)
    _, answer = ask(server, "/v1/chat/completions", messages=HI, n=3, seed=2**32 - 3, max_completion_tokens=7)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in answer["choices"]] == [str(2**32 - 3), str(2**32 - 2), "0"]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    for _, body in server.asked:
        assert body["max_tokens"] == 7
        assert body["cache_prompt"] is False
        assert not {"n", "max_completion_tokens"} & set(body)


def test_a_stream_of_several_prompts_is_one() -> None:
    server = Server(v1__completions=text_stream)
    _, events = ask(server, "/v1/completions", prompt=["A", "B"], stream=True, echo=True)
    texts = {0: "", 1: ""}
    for value in events[:-1]:
        (choice,) = value["choices"]
        texts[choice["index"]] += choice["text"]
        assert "usage" not in value
    assert texts == {0: "Aa", 1: "Ba"}
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    assert len({value["id"] for value in events}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_one_choice_is_that_of_all(stream: bool) -> None:
    server = Server(v1__chat__completions=failure(400, "too long"))
    status, answer = ask(server, "/v1/chat/completions", messages=HI, n=2, stream=stream)
    assert (status, answer["error"]["message"]) == (400, "too long")


def test_a_stream_whose_later_choice_fails_says_so() -> None:
    replies = iter([text_stream, failure(400, "no more")])
    server = Server(v1__completions=lambda body: next(replies)(body))
    _, events = ask(server, "/v1/completions", prompt=["A", "B"], stream=True, seed=1)
    assert events[-1]["error"]["message"] == "no more"

    def broken(body: dict[str, Any]) -> httpx.Response:
        raise EngineFailed("it broke off")

    replies = iter([text_stream, broken])
    _, events = ask(server, "/v1/completions", prompt=["A", "B"], stream=True, seed=1)
    assert events[-1]["error"]["code"] == "engine_failed"


def test_a_forced_call_is_generated_from_the_templates_text() -> None:
    def called(body: dict[str, Any]) -> httpx.Response:
        written = '[{"name": "now", "arguments": {"at": "é"}}]'
        choice = {"index": 0, "text": written, "logprobs": None, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice], "usage": USAGE})

    server = Server(
        apply_template=lambda body: httpx.Response(200, json={"prompt": "P"}), v1__completions=obeying(called)
    )
    tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
    _, answer = ask(server, "/v1/chat/completions", messages=HI, tools=tools, tool_choice="required")
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "now", "arguments": '{"at": "é"}'}
    _, (template, question), (completions, body) = server.asked
    assert (template, question) == ("/apply-template", {"messages": HI, "tools": tools, "tool_choice": "none"})
    assert completions == "/v1/completions"
    assert body["prompt"] == "P"
    assert body["grammar"].startswith("%llguidance {}\nstart: ")
    assert not {"messages", "tools", "tool_choice"} & set(body)


def test_an_answer_in_which_calls_cannot_be_found_is_text() -> None:
    server = Server(
        v1__chat__completions=failure(500, "The model produced output that does not match the expected format"),
        apply_template=lambda body: httpx.Response(200, json={"prompt": "P"}),
        v1__completions=text,
    )
    _, answer = ask(server, "/v1/chat/completions", messages=HI, tools=TOOLS)
    assert answer["choices"][0]["message"] == {"role": "assistant", "refusal": None, "content": "some text"}


def test_tools_that_it_cannot_read_are_named() -> None:
    told = "Automatic parser generation failed: JSON schema error at #/properties/v: schema must be an object"
    with pytest.raises(InvalidParameter, match="error at #/properties/v: schema must be an object") as raised:
        ask(Server(v1__chat__completions=failure(400, told)), "/v1/chat/completions", messages=HI, tools=TOOLS)
    assert raised.value.param == "tools"


def test_a_failure_stays_one() -> None:
    server = Server(v1__chat__completions=failure(500, "out of memory"))
    assert ask(server, "/v1/chat/completions", messages=HI, tools=TOOLS)[0] == 500


def test_what_a_server_says_of_its_model_is_asked_once() -> None:
    server, dialect = Server(v1__chat__completions=chat), LlamaCppDialect()
    for _ in range(2):
        ask(server, "/v1/chat/completions", dialect, messages=HI, logit_bias={"9": 1})
    assert server.looked_up == ["/props", "/v1/models"]
    with pytest.raises(InvalidParameter) as raised:
        ask(server, "/v1/chat/completions", dialect, messages=HI, logit_bias={"10": 1})
    assert raised.value.param == "logit_bias"


@pytest.mark.parametrize(
    ("reply", "kind", "param"),
    [
        (failure(501, "This server does not support embeddings."), InvalidParameter, "model"),
        (failure(500, "input (99 tokens) is too large to process."), ContextLengthExceeded, "input"),
    ],
)
def test_embeddings_that_cannot_be(reply: Reply, kind: type[BitmillError], param: str) -> None:
    with pytest.raises(kind) as raised:
        ask(Server(v1__embeddings=reply), "/v1/embeddings", input="A")
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("given", "top_k"),
    [({"temperature": 0}, 1), ({"temperature": 0, "top_k": 5}, 5), ({"temperature": 0.5}, None), ({}, None)],
)
def test_greedy_requests_spare_the_samplers_the_whole_vocabulary(given: dict[str, Any], top_k: int | None) -> None:
    server = Server(v1__chat__completions=chat)
    ask(server, "/v1/chat/completions", messages=HI, **given)
    assert server.asked[0][1].get("top_k") == top_k


@pytest.mark.parametrize("stream", [True, False])
def test_a_call_that_a_stop_string_cuts_off_is_no_call(stream: bool) -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": tools, "stop": "}",
             "tool_choice": "required", "stream": stream}  # fmt: skip
    choice = {"text": '[{"name": "now", "arguments": {', "finish_reason": "stop"}
    request = parse_request(ChatCompletionRequest, asked)
    JsonEdit(request, answer_grammar(request))(choice)
    assert choice["finish_reason"] == "stop"
    told = choice["delta" if stream else "message"]
    assert told["content"] == '[{"name": "now", "arguments": {'
    assert "tool_calls" not in told
