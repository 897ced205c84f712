"""llama.cpp's choices, whole or in pieces, made what OpenAI's clients expect."""

from __future__ import annotations

import json
import uuid
from typing import Any

from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.completions import CompletionRequest
from workers.serving.contract.legacy_logprobs import legacy_logprobs
from workers.serving.dialects.choices import Edit


def chat_edit(request: ChatCompletionRequest) -> Edit:
    def edit(choice: dict[str, Any]) -> None:
        for entry in entries(choice):
            entry["top_logprobs"] = entry["top_logprobs"][: request.top_logprobs or 0]

    return edit


class TextEdit:
    """For completions. Counts the characters so far, because a stream's later pieces go on from there."""

    def __init__(self, request: CompletionRequest, echoed: str) -> None:
        self._request = request
        self._echoed = echoed
        self._offset = len(echoed)

    def __call__(self, choice: dict[str, Any]) -> None:
        if self._request.logprobs is not None and choice.get("logprobs"):
            found = entries(choice)
            choice["logprobs"] = legacy_logprobs(found, self._request.logprobs, offset=self._offset)
            self._offset += sum(len(entry["token"]) for entry in found)
        if not self._request.stream:
            choice["text"] = self._echoed + choice["text"]


class JsonEdit:
    """From a completion that is JSON to a message: content, or calls of tools once they are complete."""

    def __init__(self, request: ChatCompletionRequest) -> None:
        self._request = request
        self._text = ""

    def __call__(self, choice: dict[str, Any]) -> None:
        chat_edit(self._request)(choice)
        text = choice.pop("text")
        self._text += text
        message = self._message(text, choice)
        if message is None:
            choice.clear()
            return
        choice["delta" if self._request.stream else "message"] = message

    def _message(self, text: str, choice: dict[str, Any]) -> dict[str, Any] | None:
        """None: nothing is to be told by now."""
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


def entries(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens' log-probabilities, each with its token's own text.

    Text that is held back because a character is not complete, or because it may begin a stop string, is missing
    from the token that it belongs to; the list of the best has it.
    """
    found: list[dict[str, Any]] = (choice.get("logprobs") or {}).get("content") or []
    for entry in found:
        own = next((one for one in entry["top_logprobs"] if one.get("id") == entry.get("id")), entry)
        entry.update(token=own["token"], bytes=own["bytes"])
    return found
