"""A request for much and one for little at the same time: the second is not kept waiting for all of the first."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.fakes.openai_requests import ask, complete

PROMPTS = [f"The miller carried the grain to mill number {number}." for number in range(120)]


def while_it_runs(long: Callable[[], Any], short: Callable[[], Any]) -> Any:
    """The long request's answer. Short ones, one after the other, wait for a small part of its time at most."""
    waits: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        working = pool.submit(long)
        while not working.done():
            asked = time.monotonic()
            short()
            waits.append(time.monotonic() - asked)
        answer = working.result()
    assert len(waits) >= 3
    assert max(waits) < (time.monotonic() - began) / 3, waits
    return answer


@pytest.mark.parametrize("n", [1, 3])
def test_many_choices(client: openai.OpenAI, model: str, n: int) -> None:
    ask(client, model, max_tokens=1)  # loaded before

    def long() -> Any:
        return complete(client, model, prompt=PROMPTS, n=n, max_tokens=40, temperature=1)

    answer = while_it_runs(long, lambda: ask(client, model, max_tokens=4))
    assert [choice.index for choice in answer.choices] == list(range(n * len(PROMPTS)))
    assert answer.usage.completion_tokens == 40 * n * len(PROMPTS)
    one = complete(client, model, prompt=PROMPTS[0], max_tokens=1).usage.prompt_tokens
    assert answer.usage.prompt_tokens >= one * len(PROMPTS)


def test_many_texts(client: openai.OpenAI, embedding_model: str) -> None:
    texts = [f"{text} {'mill ' * (number % 60)}" for number, text in enumerate(PROMPTS * 4)]
    client.embeddings.create(model=embedding_model, input="Hi")

    def long() -> Any:
        return client.embeddings.create(model=embedding_model, input=texts)

    found = while_it_runs(long, lambda: client.embeddings.create(model=embedding_model, input="Hi"))
    assert [each.index for each in found.data] == list(range(len(texts)))
    alone = client.embeddings.create(model=embedding_model, input=texts[77]).data[0].embedding
    assert max(abs(a - b) for a, b in zip(alone, found.data[77].embedding, strict=True)) < 0.02
