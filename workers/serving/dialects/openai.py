"""Engines that honour the contract by themselves: only how much is asked for at a time is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

from workers.serving.contract.call import Call
from workers.serving.contract.completions import CompletionRequest
from workers.serving.contract.fields import GenerationFields
from workers.serving.dialects.base import Dialect, Upstream
from workers.serving.dialects.choices import Part, ask_parts
from workers.serving.dialects.embeddings import ask_embeddings

# Seeds have 64 bits, with a sign.
SEEDS = 2**64


class OpenAiDialect(Dialect):
    async def ask(self, upstream: Upstream, call: Call) -> httpx.Response:
        if not isinstance(call.request, GenerationFields):
            return await ask_embeddings(upstream, call)
        parts = [Part(call.path, body, number, choices=choices) for body, number, choices in single_choices(call)]
        if len(parts) == 1:
            return await upstream.post(call.path, call.body)
        return await ask_parts(upstream, call, parts)


def single_choices(call: Call, *, beams: bool = True) -> Iterator[tuple[dict[str, Any], int, int]]:
    """A body for each choice of each prompt, the prompt's number, and how many choices it answers with.

    That is one, but for the beams of a search: they are made together, unless `beams` is false.
    """
    request = call.request
    assert isinstance(request, GenerationFields)  # noqa: S101 -- embeddings have no choices
    prompts = request.prompts if isinstance(request, CompletionRequest) else [None]
    together = request.n if beams and request.use_beam_search else 1
    for number, prompt in enumerate(prompts):
        given = {} if prompt is None else {"prompt": prompt}
        for choice in range(0, request.n, together):
            body = {**_one(call.body), **given, **({"n": together} if together > 1 else {})}
            if request.seed is not None:
                body["seed"] = seed_of(request.seed, choice)
            yield body, number, together


def seed_of(seed: int, choice: int) -> int:
    """Choices with a seed differ by it."""
    return (seed + choice + SEEDS // 2) % SEEDS - SEEDS // 2


def _one(body: dict[str, Any]) -> dict[str, Any]:
    """The same for a single choice. `best_of` is as many as are asked for, or it would have been refused."""
    return {name: value for name, value in body.items() if name not in ("n", "best_of")}
