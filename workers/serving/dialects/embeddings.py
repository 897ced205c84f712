"""A request for many vectors, asked a few at a time: between them it is others' turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import httpx

from workers.serving.contract.call import Call
from workers.serving.contract.completions import EmbeddingsRequest
from workers.serving.dialects.base import Upstream, whole
from workers.serving.dialects.choices import answer_of, read

# What one piece of the work holds at most: so many texts, and no more characters or token ids than this unless a
# single text has them.
TEXTS: Final = 16
LENGTH: Final = 16_384


async def ask_embeddings(upstream: Upstream, call: Call) -> httpx.Response:
    """One answer with every vector; or the first refusal, as it came."""
    assert isinstance(call.request, EmbeddingsRequest)  # noqa: S101 -- the only other kind
    inputs = call.request.inputs
    batches = in_batches([len(given) for given in inputs])
    if len(batches) == 1:
        return await upstream.post(call.path, call.body)
    vectors: list[Any] = [None] * len(inputs)
    tokens = 0
    for batch in batches:
        answer = await read(upstream, call.path, {**call.body, "input": [inputs[index] for index in batch]})
        if answer.is_error:
            return answer
        value = answer_of(answer)
        for index, found in zip(batch, sorted(value["data"], key=lambda each: each["index"]), strict=True):
            vectors[index] = {**found, "index": index}
        tokens += (value.get("usage") or {}).get("prompt_tokens", 0)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return whole({"object": "list", "data": vectors, "model": call.body["model"], "usage": usage})


def in_batches(lengths: Sequence[int]) -> list[list[int]]:
    """Places of texts that are asked for together: those of about the same length, the longest first.

    An engine fills the shorter ones up, and refuses one that is too long: both cost least this way.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or len(batches[-1]) == TEXTS or lengths[index] > room:
            batches.append([])
            room = LENGTH
        batches[-1].append(index)
        room -= lengths[index]
    return batches
