"""OpenAI's answer objects, whole and in chunks.

https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from workers.serving.batching.generator import Piece
from workers.serving.batching.sampling import TokenLogprob
from workers.serving.batching.tools import Called
from workers.serving.contract.legacy_logprobs import legacy_logprobs


class Tokens(Protocol):
    """What single tokens stand for."""

    def token_text(self, token: int) -> str: ...

    def token_bytes(self, token: int) -> bytes: ...


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
    calls: list[Called] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens = piece.tokens
        self.logprobs += piece.logprobs
        self.calls += piece.calls
        self.finish_reason = piece.finish_reason


class Answer(ABC):
    """The parts that every object of one answer shares."""

    prefix = ""
    whole_object = ""
    chunk_object = ""
    # What each choice begins with, where the prompt is a part of the answer.
    echoes: list[Piece] | None = None

    def __init__(self, model: str, tokens: Tokens, *, top_logprobs: int | None) -> None:
        """`top_logprobs` None: none are wanted."""
        self.model = model
        self.tokens = tokens
        self.top_logprobs = top_logprobs
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, choices: list[WholeChoice], usage: Usage) -> dict[str, Any]:
        views = [
            {
                "index": index,
                **self.content(index, choice),
                "logprobs": self.logprobs(index, choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head(self.whole_object), "choices": views, "usage": usage.view()}

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        choice = {
            "index": index,
            **self.delta(index, piece),
            "logprobs": self.logprobs(index, piece.logprobs),
            "finish_reason": piece.finish_reason,
        }
        return {**self._head(self.chunk_object), "choices": [choice]}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk before the first text, where there is one."""
        return None

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._head(self.chunk_object), "choices": [], "usage": usage.view()}

    @abstractmethod
    def content(self, index: int, choice: WholeChoice) -> dict[str, Any]:
        """What a whole choice says."""

    @abstractmethod
    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """What a piece of a choice says."""

    def logprobs(self, index: int, tokens: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        if self.top_logprobs is None:
            return None
        return {"content": [self.entry(item) for item in tokens], "refusal": None}

    def entry(self, item: TokenLogprob) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in item.top]
        return {**self._token(item.token, item.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": self.tokens.token_text(token),
            "logprob": logprob,
            "bytes": list(self.tokens.token_bytes(token)),
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class ChatAnswer(Answer):
    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, model: str, tokens: Tokens, *, top_logprobs: int | None) -> None:
        super().__init__(model, tokens, top_logprobs=top_logprobs)
        self._calls: Counter[int] = Counter()

    def opening(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": "", "refusal": None}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head(self.chunk_object), "choices": [choice]}

    def content(self, index: int, choice: WholeChoice) -> dict[str, Any]:
        calls = {"tool_calls": [call.view() for call in choice.calls]} if choice.calls else {}
        text = None if choice.calls and not choice.text else choice.text
        return {"message": {"role": "assistant", "content": text, "refusal": None, **calls}}

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        text = {"content": piece.text} if piece.text else {}
        first = self._calls[index]
        self._calls[index] += len(piece.calls)
        calls = [{"index": first + place, **call.view()} for place, call in enumerate(piece.calls)]
        return {"delta": {**text, **({"tool_calls": calls} if calls else {})}}


class TextAnswer(Answer):
    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self, model: str, tokens: Tokens, *, top_logprobs: int | None, echoes: list[Piece] | None = None
    ) -> None:
        super().__init__(model, tokens, top_logprobs=top_logprobs)
        self.echoes = echoes
        self._offsets: Counter[int] = Counter()

    def opening(self, index: int) -> dict[str, Any] | None:
        return None if self.echoes is None else self.chunk(index, self.echoes[index])

    def content(self, index: int, choice: WholeChoice) -> dict[str, Any]:
        return {"text": choice.text}

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text}

    def logprobs(self, index: int, tokens: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        if self.top_logprobs is None:
            return None
        entries = [self.entry(item) for item in tokens]
        offset = self._offsets[index]
        self._offsets[index] += sum(len(entry["token"]) for entry in entries)
        return legacy_logprobs(entries, self.top_logprobs, offset=offset)
