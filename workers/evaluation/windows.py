"""The protocol of llama-perplexity: windows of fixed length, of which the second half is scored.

A window's first half only gives context, so that no token is judged with next to none. Where the tokenizer
puts a beginning-of-sequence token before text, it takes the first place of each window.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from app.domain.errors import InvalidParameter

Tokens = npt.NDArray[np.int64]


def cut(tokens: Tokens, *, length: int, limit: int, bos: int | None) -> list[Tokens]:
    """Up to `limit` windows of `length` tokens; the rest of the text is left out.

    Raises InvalidParameter when the text does not fill one.
    """
    count = min(len(tokens) // length, limit)
    if count == 0:
        raise InvalidParameter(
            f"the text has {len(tokens)} tokens, a window needs {length}; give more text or a shorter context_length"
        )
    windows = [tokens[start : start + length].copy() for start in range(0, count * length, length)]
    if bos is not None:
        for window in windows:
            window[0] = bos
    return windows


def scored(window: Tokens) -> tuple[slice, Tokens]:
    """Which positions' logits are scored, and the tokens that they should predict."""
    first = len(window) // 2
    return slice(first, len(window) - 1), window[first + 1 :]
