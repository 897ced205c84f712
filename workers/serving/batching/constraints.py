"""Answers that must follow a grammar: at each token, everything that would break it is masked.

llguidance (https://github.com/guidance-ai/llguidance) walks the grammar, byte by byte, over the model's tokens.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from workers.serving.contract.schemas import refuse

log = logging.getLogger(__name__)

KEPT_GRAMMARS = 64


class Constraint:
    """One generation's place in its grammar. The thread that samples moves it; others read the attributes.

    `length` counts the tokens after which nothing but the end may follow, once they are there. `failure` says why
    the grammar could not be followed: it asked for more work than the library allows.
    """

    def __init__(self, matcher: Any) -> None:
        self.length: int | None = None
        self.failure: str | None = None
        self._matcher = matcher
        self._taken = 0

    def mask(self, row: torch.Tensor) -> None:
        """Sets what may not come next to -inf, in place. `row` has shape [vocabulary]."""
        if self.failure or self.length is not None:
            return
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._failed():
            return
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: row.numel()].astype(np.bool_))
        row[: allowed.numel()].masked_fill_(~allowed.to(row.device), float("-inf"))
        row[allowed.numel() :] = float("-inf")

    def accept(self, token: int) -> None:
        if self.failure or self.length is not None:
            return
        self._taken += 1
        self._matcher.consume_token(token)
        if not self._failed() and self._matcher.is_stopped():
            self.length = self._taken

    def _failed(self) -> bool:
        self.failure = self._matcher.get_error() or None
        return self.failure is not None


class Grammars:
    """Compiles grammars for one tokenizer, and keeps the latest: clients send the same schema again and again."""

    def __init__(self, tokenizer: Any, *, vocabulary_size: int, ends: Sequence[int]) -> None:
        self.tokens: LLTokenizer = from_tokenizer(tokenizer, n_vocab=vocabulary_size, eos_token=list(ends) or None)
        self._kept: OrderedDict[str, Any] = OrderedDict()

    def constraint(self, lark: str, *, param: str) -> Constraint:
        """Raises InvalidParameter for a grammar, or a schema in it, that cannot be followed."""
        # Several threads compile at a time: what one has just kept another may have dropped again.
        matcher = self._kept.pop(lark, None) or self._compile(lark, param)
        self._kept[lark] = matcher
        if len(self._kept) > KEPT_GRAMMARS:
            self._kept.popitem(last=False)
        return Constraint(matcher.deep_copy())

    def _compile(self, lark: str, param: str) -> Any:
        matcher = LLMatcher(self.tokens, LLMatcher.grammar_from_lark(lark), log_level=0)
        refuse(matcher.get_error(), param=param)
        return matcher


def text_rule(text: str, special_tokens: dict[str, int]) -> str:
    """Exactly this text, in which the model's special tokens stand for themselves."""
    token = special_tokens.get(text)
    return json.dumps(text) if token is None else f"<[{token}]>"
