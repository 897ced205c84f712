"""Answers of /v1/responses, made from chat completions.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any, Final

from fastapi.responses import Response

from app.domain.errors import BitmillError
from app.streaming import RelayResponse
from workers.serving.contract.responses import ResponsesRequest
from workers.serving.dialects.base import event, objects

# What a field of a chat completion is called here.
FIELDS: Final = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text",
    "logprobs": "include",
}


def renamed(error: BitmillError) -> BitmillError:
    """The same error, which speaks of this route's fields."""
    if error.param in FIELDS:
        error.message = error.message.replace(f"`{error.param}", f"`{FIELDS[error.param]}")
        error.param = FIELDS[error.param]
    return error


def as_response(answer: Response, request: ResponsesRequest) -> Response:
    """The answer to a chat completion as one to this request; a refusal stays one."""
    if isinstance(answer, RelayResponse):
        events = ResponseStream(request).events(answer.chunks)
        headers = {name.decode(): value.decode() for name, value in answer.raw_headers}
        return RelayResponse(events, answer.close, status_code=answer.status_code, headers=headers, until=answer.until)
    value = json.loads(bytes(answer.body))
    if "error" in value:
        value["error"]["param"] = FIELDS.get(value["error"]["param"], value["error"]["param"])
    else:
        value = _whole(value, request)
    later = {name: answer.headers[name] for name in ("retry-after",) if name in answer.headers}
    return Response(json.dumps(value).encode(), answer.status_code, later, media_type="application/json")


def _whole(completion: dict[str, Any], request: ResponsesRequest) -> dict[str, Any]:
    (choice,) = completion["choices"]
    message = choice["message"]
    logprobs = (choice.get("logprobs") or {}).get("content") or []
    calls = [_call_item(call["id"], call["function"]["name"], call["function"]["arguments"])
             for call in message.get("tool_calls") or ()]  # fmt: skip
    output = calls if calls and not message["content"] else [_message_item(message["content"] or "", logprobs), *calls]
    view = _view(request, f"resp_{uuid.uuid4().hex}", int(time.time()))
    return view | _ending(choice["finish_reason"], output, completion.get("usage"))


def _view(request: ResponsesRequest, id_: str, created_at: int) -> dict[str, Any]:
    """A response that has just begun, with what it was asked."""
    asked = request.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "id": id_,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "model": request.model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": request.temperature,
        "text": asked.get("text") or {"format": {"type": "text"}},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools", []),
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _ending(finish_reason: str | None, output: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
    cut = finish_reason == "length"
    return {
        "status": "incomplete" if cut else "completed",
        "completed_at": None if cut else int(time.time()),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [{**item, "status": "incomplete"} if cut and item is output[-1] else item for item in output],
        # Some servers elsewhere do not tell.
        "usage": None if usage is None else _usage(usage),
    }


def _usage(usage: dict[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


def _message_item(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    id_ = f"msg_{uuid.uuid4().hex}"
    return {"id": id_, "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _call_item(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "status": "completed",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


class ResponseStream:
    """One streamed response: the events that follow from the pieces of a chat completion."""

    def __init__(self, request: ResponsesRequest) -> None:
        self._request = request
        self._view = _view(request, f"resp_{uuid.uuid4().hex}", int(time.time()))
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._calls: dict[int, int] = {}  # where the call with the completion's index is in the output
        self._open: int | None = None  # the item that grows
        self._reason: str | None = None
        self._usage: dict[str, int] | None = None

    async def events(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        yield self._event("response.created", response=self._view)
        yield self._event("response.in_progress", response=self._view)
        async with aclosing(objects(chunks)) as found:
            async for value in found:
                if "error" in value:
                    yield self._failed(value["error"])
                    return
                for made in self._piece(value):
                    yield made
        for made in self._end():
            yield made

    def _piece(self, value: dict[str, Any]) -> Iterator[bytes]:
        self._usage = value.get("usage") or self._usage
        for choice in value["choices"]:
            self._reason = choice.get("finish_reason") or self._reason
            delta = choice["delta"]
            logprobs = (choice.get("logprobs") or {}).get("content") or []
            if delta.get("content") or logprobs:
                yield from self._text(delta.get("content") or "", logprobs)
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)

    def _text(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[bytes]:
        if self._open is None or self._output[self._open]["type"] != "message":
            yield from self._close()
            yield from self._begin({**_message_item("", []), "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._event("response.content_part.added", **self._place(), content_index=0, part=part)
            self._output[-1]["content"] = [part]
        part = self._output[-1]["content"][0]
        part["text"] += text
        part["logprobs"] = part["logprobs"] + logprobs
        yield self._event("response.output_text.delta", **self._place(), content_index=0, delta=text, logprobs=logprobs)

    def _call(self, call: dict[str, Any]) -> Iterator[bytes]:
        function = call.get("function") or {}
        if call["index"] not in self._calls:
            yield from self._close()
            yield from self._begin(_call_item(call["id"], function["name"], ""))
            self._calls[call["index"]] = len(self._output) - 1
        if arguments := function.get("arguments"):
            self._output[self._calls[call["index"]]]["arguments"] += arguments
            yield self._event("response.function_call_arguments.delta", **self._place(), delta=arguments)

    def _begin(self, item: dict[str, Any]) -> Iterator[bytes]:
        self._output.append(item)
        self._open = len(self._output) - 1
        yield self._event("response.output_item.added", output_index=self._open, item={**item, "status": "in_progress"})

    def _close(self) -> Iterator[bytes]:
        """Ends the item that grows, if there is one."""
        if self._open is None:
            return
        item = self._output[self._open]
        if item["type"] == "message":
            (part,) = item["content"]
            place = {**self._place(), "content_index": 0}
            yield self._event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
            yield self._event("response.content_part.done", **place, part=part)
        else:
            named = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **self._place(), **named)
        yield self._event("response.output_item.done", output_index=self._open, item=item)
        self._open = None

    def _end(self) -> Iterator[bytes]:
        if self._reason is None:
            yield self._failed({"message": "the engine broke off its answer; send the request again"})
            return
        if not self._output:
            yield from self._text("", [])
        yield from self._close()
        ending = self._view | _ending(self._reason, self._output, self._usage)
        yield self._event(f"response.{ending['status']}", response=ending)

    def _failed(self, error: dict[str, Any]) -> bytes:
        told = {"code": "server_error", "message": error["message"]}
        return self._event("response.failed", response=self._view | {"status": "failed", "error": told})

    def _place(self) -> dict[str, Any]:
        assert self._open is not None  # noqa: S101 -- an item was begun before
        return {"item_id": self._output[self._open]["id"], "output_index": self._open}

    def _event(self, kind: str, **fields: Any) -> bytes:
        made = event({"type": kind, "sequence_number": self._sequence, **fields}, name=kind)
        self._sequence += 1
        return made
