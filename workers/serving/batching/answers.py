"""OpenAI's answer objects, whole and in chunks.

https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from workers.serving.batching.generator import Piece
from workers.serving.batching.sampling import TokenLogprob

TokenText = Callable[[int], str]


@dataclass(slots=True)
class Usage:
    """Prompt tokens count once per prompt, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int = 0

    def view(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(slots=True)
class WholeChoice:
    """A choice put together from its pieces."""

    text: str = ""
    finish_reason: str | None = None
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens = piece.tokens
        self.logprobs += piece.logprobs
        self.finish_reason = piece.finish_reason


class Answer:
    """The parts that every object of one answer shares."""

    prefix = ""
    whole_object = ""
    chunk_object = ""

    def __init__(self, model: str, token_text: TokenText, *, logprobs: bool) -> None:
        self.model = model
        self.token_text = token_text
        self.with_logprobs = logprobs
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, choices: list[WholeChoice], usage: Usage) -> dict[str, Any]:
        views = [
            {
                "index": index,
                **self.content(choice.text),
                "logprobs": self.logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head(self.whole_object), "choices": views, "usage": usage.view()}

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        choice = {
            "index": index,
            **self.delta(piece.text),
            "logprobs": self.logprobs(piece.logprobs),
            "finish_reason": piece.finish_reason,
        }
        return {**self._head(self.chunk_object), "choices": [choice]}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk before the first text, where there is one."""
        return None

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head(self.chunk_object), "choices": [], "usage": usage.view()}

    def content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def logprobs(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        return {"content": [self._token(item) for item in tokens], "refusal": None}

    def _token(self, item: TokenLogprob) -> dict[str, Any]:
        top = [self._entry(token, logprob) for token, logprob in item.top]
        return {**self._entry(item.token, item.logprob), "top_logprobs": top}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class ChatAnswer(Answer):
    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": "", "refusal": None}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head(self.chunk_object), "choices": [choice]}

    def content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}


class TextAnswer(Answer):
    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"
