"""A load generator: so many clients at a time, each asking one question after another, streaming or not."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

# Different beginnings, so that no server profits from a prefix that it has just seen.
SUBJECTS: Final = (
    "a mill by the river", "the first snow", "an old clock", "two brothers", "a lighthouse", "the night train",
    "a garden in June", "a lost letter", "the harbour", "a blue bicycle", "the library", "a long winter",
    "a market town", "the last bus", "a stone bridge", "an orchard",
)  # fmt: skip
MAX_TOKENS: Final = 64


@dataclass(slots=True)
class Server:
    """Where to ask, under which name; `refuses` names fields that this server does not take."""

    url: str
    model: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Answer:
    """Times are in seconds; `pieces` has the moments at which text came."""

    text: str
    started: float
    pieces: list[float]
    tokens: int


@dataclass(slots=True)
class Measured:
    tokens_per_second: float
    first_token_seconds: list[float]
    inter_token_seconds: list[float]


async def measure(
    server: Server, *, concurrency: int, requests: int, stream: bool, offset: int = 0, max_tokens: int = MAX_TOKENS
) -> Measured:
    """All requests through `concurrency` clients. Tokens per second count the answers' tokens alone."""
    waiting = iter(range(requests))
    # llama.cpp's server closes connections as it pleases, which a client that keeps them would have to forgive.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    headers = {"connection": "close", **server.headers}
    async with httpx.AsyncClient(timeout=600, limits=limits, headers=headers) as client:

        async def one_client() -> list[Answer]:
            return [
                await ask(client, server, offset + number, stream=stream, max_tokens=max_tokens) for number in waiting
            ]

        started = time.perf_counter()
        lists = await asyncio.gather(*(one_client() for _ in range(concurrency)))
        seconds = time.perf_counter() - started
    answers = [answer for each in lists for answer in each]
    assert len(answers) == requests
    return Measured(
        sum(answer.tokens for answer in answers) / seconds,
        [answer.pieces[0] - answer.started for answer in answers if answer.pieces],
        [b - a for answer in answers for a, b in zip(answer.pieces, answer.pieces[1:], strict=False)],
    )


async def ask(
    client: httpx.AsyncClient, server: Server, number: int, *, stream: bool, max_tokens: int = MAX_TOKENS
) -> Answer:
    subject = SUBJECTS[number % len(SUBJECTS)]
    body: dict[str, Any] = {
        "model": server.model,
        "messages": [{"role": "user", "content": f"{number}. Write a long story about {subject}."}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": stream,
    }
    started = time.perf_counter()
    if stream:
        return await _stream(client, server.url, body, started)
    answer = await client.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    value = answer.json()
    return Answer(value["choices"][0]["message"]["content"], started, [], value["usage"]["completion_tokens"])


async def _stream(client: httpx.AsyncClient, url: str, body: dict[str, Any], started: float) -> Answer:
    text, pieces = "", []
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            value = json.loads(line.removeprefix("data: "))
            assert "error" not in value, value
            for choice in value["choices"]:
                if content := (choice.get("delta") or {}).get("content"):
                    text += content
                    pieces.append(time.perf_counter())
    assert pieces, "a stream brought no text"
    # Servers send a token or so in each piece; whole answers, which tell their usage, settle the exact number.
    return Answer(text, started, pieces, len(pieces))


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1] if len(values) > 1 else (
        values[0] if values else 0.0
    )  # fmt: skip
