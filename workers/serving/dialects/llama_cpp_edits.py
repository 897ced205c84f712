"""llama.cpp's choices, whole or in pieces, made what OpenAI's clients expect."""

from __future__ import annotations

from typing import Any

from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.completions import CompletionRequest
from workers.serving.contract.legacy_logprobs import legacy_logprobs
from workers.serving.contract.schemas import Grammar
from workers.serving.dialects.choices import Edit
from workers.serving.dialects.json_messages import JsonMessage


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
    """From a completion that is JSON to a message."""

    def __init__(self, request: ChatCompletionRequest, grammar: Grammar | None) -> None:
        self._edit = chat_edit(request)
        self._message = JsonMessage(request, grammar)

    def __call__(self, choice: dict[str, Any]) -> None:
        self._edit(choice)
        self._message.put(choice.pop("text"), choice)


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
