"""Answers that are JSON, calls of tools, and refusals. The same for every engine."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest

from tests.fakes.checkpoints import tiny_tokenizer
from tests.fakes.openai_requests import (
    ANSWER_SCHEMA,
    CONTEXT_LENGTH,
    HELLO,
    TOOLS,
    ask,
    complete,
    never_ending,
    refused,
)


class TestStructure:
    @pytest.mark.parametrize("temperature", [0, 1])
    def test_a_schema_is_followed(self, client: openai.OpenAI, model: str, temperature: float) -> None:
        format_ = {"type": "json_schema", "json_schema": {"name": "place", "schema": ANSWER_SCHEMA, "strict": True}}
        answer = ask(
            client, model, n=3, temperature=temperature, seed=3, response_format=format_, max_tokens=300, top_p=0.9
        )
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content), ANSWER_SCHEMA)

    def test_a_stream_follows_it_too(self, client: openai.OpenAI, model: str) -> None:
        format_ = {"type": "json_schema", "json_schema": {"name": "place", "schema": ANSWER_SCHEMA}}
        chunks = ask(client, model, response_format=format_, max_tokens=300, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        jsonschema.validate(json.loads(text), ANSWER_SCHEMA)

    def test_any_object(self, client: openai.OpenAI, model: str) -> None:
        # Random weights would write without an end: what ends an object is made likelier.
        ends = {str(tiny_tokenizer().encode(text)[0]): 8 for text in ('"', "}", ":")}
        answer = ask(
            client,
            model,
            response_format={"type": "json_object"},
            max_tokens=400,
            logit_bias=ends,
            temperature=1,
            seed=1,
        )
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(json.loads(answer.choices[0].message.content), dict)

    @pytest.mark.parametrize(
        "schema", [{"type": "nonsense"}, {"type": "array", "uniqueItems": True}, {"not": {"type": "string"}}]
    )
    def test_a_schema_that_cannot_be_followed(self, client: openai.OpenAI, model: str, schema: dict[str, Any]) -> None:
        format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert refused(client, model, response_format=format_)["param"] == "response_format"


class TestTools:
    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "forecast"}}])
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_call_that_must_come(self, client: openai.OpenAI, calling_model: str, choice: Any, stream: bool) -> None:
        calls, reason = called(client, calling_model, stream, tool_choice=choice, parallel_tool_calls=False)
        assert reason == "tool_calls"
        ((name, arguments),) = calls
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
        jsonschema.validate(json.loads(arguments), schemas[name])
        assert name == "forecast" or choice == "required"

    @pytest.mark.parametrize("choice", [None, "auto", "none"])
    def test_a_call_that_may_come(self, client: openai.OpenAI, calling_model: str, choice: Any) -> None:
        given = {} if choice is None else {"tool_choice": choice}
        answer = ask(client, calling_model, tools=TOOLS, temperature=0, logit_bias=never_ending(), **given)
        assert answer.choices[0].message.content  # a random model calls nothing by itself
        assert answer.choices[0].message.tool_calls is None

    def test_tools_are_a_part_of_the_prompt(self, client: openai.OpenAI, calling_model: str) -> None:
        without = ask(client, calling_model, max_tokens=1).usage.prompt_tokens
        assert ask(client, calling_model, max_tokens=1, tools=TOOLS).usage.prompt_tokens > without + 20

    def test_calls_and_results_in_the_history(self, client: openai.OpenAI, calling_model: str) -> None:
        call = {"id": "call_1", "type": "function", "function": {"name": "forecast", "arguments": '{"city": "Rome"}'}}
        history: Any = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "It is sunny in Rome."},
            *HELLO,
        ]
        answer = ask(client, calling_model, messages=history, tools=TOOLS)
        shorter = ask(client, calling_model, messages=[*history[:2], *HELLO], tools=TOOLS)
        assert answer.usage.prompt_tokens > shorter.usage.prompt_tokens + 5

    def test_a_template_without_tools(self, client: openai.OpenAI, model: str) -> None:
        error = refused(client, model, tools=TOOLS)
        assert (error["param"], error["code"]) == ("tools", "unsupported_field")
        history = [*HELLO, {"role": "tool", "tool_call_id": "x", "content": "sunny"}]
        assert refused(client, model, messages=history)["param"] == "messages"


def called(client: openai.OpenAI, model: str, stream: bool, **fields: Any) -> tuple[list[tuple[str, str]], str | None]:
    """Names and arguments, and how the answer ended."""
    answer = ask(client, model, tools=TOOLS, max_tokens=200, temperature=1, seed=2, stream=stream, **fields)
    if not stream:
        (choice,) = answer.choices
        return [
            (call.function.name, call.function.arguments) for call in choice.message.tool_calls
        ], choice.finish_reason
    calls: dict[int, list[str]] = {}
    reason = None
    for chunk in answer:
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(part.index, ["", ""])
                call[0] += part.function.name or ""
                call[1] += part.function.arguments or ""
    return [(name, arguments) for name, arguments in calls.values()], reason


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"max_tokens": "many"}, "max_tokens"),
            ({"messages": [{"role": "user", "content": 5}]}, "messages"),
            ({"temperature": -1}, "temperature"),
            ({"unheard_of": 1}, "unheard_of"),
            ({"mirostat_tau": "x"}, "mirostat_tau"),
            ({"store": True}, "store"),
            ({"functions": [{"name": "f"}]}, "functions"),
        ],
    )
    def test_a_wrong_field(self, client: openai.OpenAI, model: str, fields: dict[str, Any], param: str) -> None:
        assert refused(client, model, extra_body=fields)["param"] == param

    def test_a_prompt_longer_than_the_context(self, client: openai.OpenAI, model: str) -> None:
        long = "mill " * CONTEXT_LENGTH
        assert refused(client, model, complete, prompt=long)["code"] == "context_length_exceeded"
        messages = [{"role": "user", "content": long}]
        assert refused(client, model, messages=messages)["code"] == "context_length_exceeded"
        assert refused(client, model, messages=messages, stream=True, n=2)["code"] == "context_length_exceeded"
