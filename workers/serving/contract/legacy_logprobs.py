"""The log-probabilities of /v1/completions, which have a shape of their own.

https://platform.openai.com/docs/api-reference/completions/object
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def legacy_logprobs(tokens: Iterable[dict[str, Any]], top: int, *, offset: int = 0) -> dict[str, Any]:
    """From entries as in chat completions: `token`, `logprob` and `top_logprobs`.

    `offset` counts the characters before the first. An entry whose logprob is None is the first token of a
    prompt, which nothing predicted.
    """
    entries = list(tokens)
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [_best(entry, top) for entry in entries] if top else None,
        "text_offset": offsets,
    }


def _best(entry: dict[str, Any], top: int) -> dict[str, float] | None:
    if entry["logprob"] is None:
        return None
    return {one["token"]: one["logprob"] for one in entry["top_logprobs"][:top]}
