"""The events of a response, from the pieces of a chat completion."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from workers.serving.contract.parsing import parse_request
from workers.serving.contract.responses import ResponsesRequest
from workers.serving.dialects.base import event
from workers.serving.responses import ResponseStream

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
TOOLS = [{"type": "function", "name": "now", "parameters": {"type": "object"}}]


def request(**fields: Any) -> ResponsesRequest:
    return parse_request(ResponsesRequest, {"model": "m", "input": "Hi", **fields})


def piece(reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def events(*pieces: dict[str, Any]) -> list[dict[str, Any]]:
    async def chunks() -> AsyncIterator[bytes]:
        for value in pieces:
            yield event(value)

    async def read() -> list[bytes]:
        return [made async for made in ResponseStream(request(tools=TOOLS)).events(chunks())]

    return [json.loads(made.split(b"data: ", 1)[1]) for made in asyncio.run(read())]


def test_text_then_calls_in_pieces() -> None:
    calls: list[dict[str, Any]] = [
        {"index": 0, "id": "call_0", "function": {"name": "now", "arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 1, "id": "call_1", "function": {"name": "now", "arguments": "{}"}},
    ]
    made = events(
        piece(role="assistant", content=None),
        piece(content="So "),
        piece(content="be it"),
        *(piece(tool_calls=[call]) for call in calls),
        piece(reason="tool_calls"),
        {"choices": [], "usage": USAGE},
    )
    item = ["response.output_item.added"]
    call_end = ["response.function_call_arguments.done", "response.output_item.done"]
    delta = ["response.function_call_arguments.delta"]
    assert [each["type"] for each in made] == [
        "response.created", "response.in_progress",
        *item, "response.content_part.added", *["response.output_text.delta"] * 2,
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        *item, *delta * 2, *call_end, *item, *delta, *call_end,
        "response.completed",
    ]  # fmt: skip
    assert [each["sequence_number"] for each in made] == list(range(len(made)))
    message, first, second = made[-1]["response"]["output"]
    assert message["content"][0]["text"] == "So be it"
    assert (first["call_id"], first["arguments"], second["call_id"]) == ("call_0", '{"a": 1}', "call_1")
    assert made[-1]["response"]["usage"]["total_tokens"] == 5
    for each in made:
        if "output_index" in each:
            assert (
                each.get("item_id", each.get("item", {}).get("id"))
                == [message, first, second][each["output_index"]]["id"]
            )


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(content="a"), {"error": {"message": "it broke off"}}],
        [piece(content="a")],  # the stream just ends
    ],
)
def test_a_broken_stream_ends_with_a_failure(pieces: list[dict[str, Any]]) -> None:
    last = events(*pieces)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert "broke off" in last["response"]["error"]["message"]


def test_a_server_that_tells_no_usage() -> None:
    last = events(piece(content="a"), piece(reason="length"))[-1]
    assert (last["type"], last["response"]["usage"]) == ("response.incomplete", None)
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


def test_a_response_is_asked_as_a_chat_completion() -> None:
    given = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "c", "annotations": []}],
            },
            {"type": "function_call", "call_id": "1", "name": "now", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "noon"},
        ],
        "tools": TOOLS,
        "tool_choice": {"type": "function", "name": "now"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "max_output_tokens": 5,
        "store": False,
        "stream": True,
        "top_k": 3,
    }
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    assert request(**given).chat_body({"model": "m", **given}) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "c", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "noon"},
        ],
        "tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "now"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "logprobs": True,
        "top_logprobs": 2,
        "max_completion_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_k": 3,
    }
