"""From a text that is JSON, whole or in pieces, to a message: its content, or calls of tools once they are complete."""

from __future__ import annotations

import json
import uuid
from typing import Any

from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.schemas import calls_once, calls_rules, json_rule


def answer_grammar(request: ChatCompletionRequest) -> str:
    """A list of calls, or an instance of the schema. Which form a model was trained on does not matter here."""
    if not request.must_call:
        return f"start: {json_rule(request.json_schema or {})}\n"
    more = "" if calls_once(request) else '(", " call)*'
    return f'start: "[" call {more} "]"\n{calls_rules(request)}'


class JsonMessage:
    """Collects one choice's text."""

    def __init__(self, request: ChatCompletionRequest) -> None:
        self._request = request
        self._text = ""

    def put(self, text: str, choice: dict[str, Any]) -> None:
        """Writes what is to be told by now into the choice, in place, and empties it where that is nothing."""
        self._text += text
        message = self._message(text, choice)
        if message is None:
            choice.clear()
            return
        choice["delta" if self._request.stream else "message"] = message

    def _message(self, text: str, choice: dict[str, Any]) -> dict[str, Any] | None:
        role = {} if self._request.stream else {"role": "assistant", "refusal": None}
        if not self._request.must_call:
            return {**role, "content": text} if text else role
        if choice["finish_reason"] is None:
            return None
        calls = None if choice["finish_reason"] == "length" else _calls(self._text)
        if calls is None:
            # Cut off, by the limit or a stop string: not a call, but what there is of one.
            return {**role, "content": self._text}
        choice["finish_reason"] = "tool_calls"
        return {**role, "tool_calls": calls} if self._request.stream else {**role, "content": None, "tool_calls": calls}


def _calls(text: str) -> list[dict[str, Any]] | None:
    try:
        return [_call(index, given) for index, given in enumerate(json.loads(text))]
    except ValueError:
        return None


def _call(index: int, given: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(given["arguments"], ensure_ascii=False)
    function = {"name": given["name"], "arguments": arguments}
    return {"index": index, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
