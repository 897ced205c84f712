"""How fast a model is served, and what that takes: measured on the engine that would serve it.

An engine of our own is started on the loopback address, asked for completions at 1 and at 8 requests at a time,
and stopped. Imports no ML library.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx

from app.domain.errors import EngineFailed
from app.domain.evaluation import EngineFigures, Metric, SpeedFigures
from app.settings import Settings
from workers.evaluation.energy import gpu_joules
from workers.serving.engines.base import EngineProcess
from workers.serving.machine import Machine
from workers.serving.planning import EnginePlanner, Plan
from workers.serving.process import RunningEngine, log_name, new_address
from workers.serving.served import ServedModel

Report = Callable[[float, str], None]

REQUESTS: Final = (1, 8)
# Enough for rates that a slow processor gives within a minute. Reading is timed with long prompts and one token of
# answer, writing with short prompts and long answers: else the one would be timed while others do the other.
PROMPT_CHARACTERS: Final = 1024
SHORT_CHARACTERS: Final = 64
OUTPUT_TOKENS: Final = 64


@dataclass(frozen=True)
class Answer:
    """When the first and the last token of one request came, on the monotonic clock, and what the engine counted."""

    sent: float
    first: float
    last: float
    prompt_tokens: int
    output_tokens: int


def measure_serving(
    model: ServedModel, text: str, metrics: set[Metric], settings: Settings, report: Report
) -> EngineFigures:
    """`text` gives the prompts. Raises InvalidParameter for an engine that cannot serve it, or EngineFailed."""
    return asyncio.run(_measure(model, text, metrics, settings, report))


async def _measure(
    model: ServedModel, text: str, metrics: set[Metric], settings: Settings, report: Report
) -> EngineFigures:
    machine = Machine(settings.serving_gpu_memory_share)
    plan = EnginePlanner(settings, machine)(model)
    report(0.0, f"loading the model on {plan.engine.spec.name}")
    started = time.monotonic()
    running = await _start(model, plan, settings)
    try:
        await running.wait_until_healthy(settings.serving_load_timeout_seconds)
        load_seconds = time.monotonic() - started
        speed = await _speed(running, plan, text, metrics, report)
        return EngineFigures(
            engine=plan.engine.spec.name,
            engine_version=plan.engine.version(),
            device=machine.device.value,
            context_length=plan.options.context_length,
            load_seconds=load_seconds,
            resident_bytes=running.resident_bytes(),
            gpu_bytes=machine.used_by(running.pids()),
            predicted_bytes=plan.estimate.total_bytes,
            speed=speed,
        )
    finally:
        await running.kill()


async def _start(model: ServedModel, plan: Plan, settings: Settings) -> RunningEngine:
    address = new_address()
    command = plan.engine.command(model.folder, plan.options, address)
    if not isinstance(command, EngineProcess):
        raise EngineFailed(f"the model {model.name!r} is served elsewhere and cannot be measured here")
    return await RunningEngine.start(command, address, settings.logs_folder / f"evaluation-{log_name(model.name)}")


async def _speed(
    running: RunningEngine, plan: Plan, text: str, metrics: set[Metric], report: Report
) -> tuple[SpeedFigures, ...]:
    if not {Metric.SPEED, Metric.ENERGY, Metric.MEMORY} & metrics:
        return ()
    limit = plan.options.context_length // 4
    timeout = httpx.Timeout(600.0, connect=10.0)
    # llama.cpp closes connections that were idle for a while, maybe just as the next request is sent on one; and each
    # that is kept open holds one of its threads.
    headers, limits = running.headers | {"connection": "close"}, httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout, trust_env=False) as client:
        long, short = Prompts(text, min(PROMPT_CHARACTERS, limit)), Prompts(text, min(SHORT_CHARACTERS, limit))
        output = min(OUTPUT_TOKENS, limit)
        # The first answer pays for what later ones find ready; it is not measured.
        await _complete(client, running, short.next(), output)
        found = []
        for number, count in enumerate(REQUESTS):
            report(number / len(REQUESTS), f"timing {count} request{'s' if count > 1 else ''} at a time")
            read = await _together(client, running, [long.next() for _ in range(count)], 1)
            before = gpu_joules() if Metric.ENERGY in metrics else None
            written = await _together(client, running, [short.next() for _ in range(count)], output)
            after = gpu_joules() if before is not None else None
            found.append(
                rates(read, written, joules=after - before if after is not None and before is not None else None)
            )
    return tuple(found) if {Metric.SPEED, Metric.ENERGY} & metrics else ()


class Prompts:
    """Pieces of a text that begin differently each time, so that no cache of prefixes answers for the engine."""

    def __init__(self, text: str, characters: int) -> None:
        self.text = text
        self.characters = characters
        self.count = 0

    def next(self) -> str:
        self.count += 1
        start = self.count * self.characters % max(len(self.text) - self.characters, 1)
        return f"{self.count}. {self.text[start : start + self.characters]}"


async def _together(client: httpx.AsyncClient, running: RunningEngine, prompts: list[str], output: int) -> list[Answer]:
    return await asyncio.gather(*(_complete(client, running, prompt, output) for prompt in prompts))


def rates(read: list[Answer], written: list[Answer], *, joules: float | None = None) -> SpeedFigures:
    """Of long prompts answered with one token, sent together, and of short prompts with long answers.

    Prefill: all tokens of the long prompts, by the time until the last first token. Decode: all output tokens but each
    request's first, by the time from the earliest first token to the last token of all. `joules` went into the latter.
    """
    prompt, output = sum(each.prompt_tokens for each in read), sum(each.output_tokens for each in written)
    reading = max(each.first for each in read) - min(each.sent for each in read)
    writing = max(each.last for each in written) - min(each.first for each in written)
    return SpeedFigures(
        requests=len(read),
        prompt_tokens=prompt,
        output_tokens=output,
        time_to_first_token_seconds=sum(each.first - each.sent for each in read) / len(read),
        prefill_tokens_per_second=_rate(prompt, reading),
        decode_tokens_per_second=_rate(output - len(written), writing),
        joules_per_output_token=joules / output if joules is not None and output else None,
    )


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


async def _complete(client: httpx.AsyncClient, running: RunningEngine, prompt: str, output: int) -> Answer:
    """One streamed completion, greedy. Raises EngineFailed."""
    body = {
        "model": running.upstream_model, "prompt": prompt, "max_tokens": output, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    sent = time.monotonic()
    moments: list[float] = []
    usage: dict[str, Any] = {}
    try:
        async with client.stream("POST", running.url("/v1/completions"), json=body) as answer:
            if answer.is_error:
                raise EngineFailed(f"the engine refused to be timed: {(await answer.aread()).decode()[:300]}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    moments, usage = _read(json.loads(line[6:]), moments, usage)
    except httpx.HTTPError as error:
        raise EngineFailed(f"the engine ended while it was timed ({type(error).__name__}: {error})") from error
    if not moments or not usage:
        raise EngineFailed("the engine gave no token and no usage while it was timed")
    return Answer(sent, moments[0], moments[-1], usage["prompt_tokens"], usage["completion_tokens"])


def _read(chunk: dict[str, Any], moments: list[float], usage: dict[str, Any]) -> tuple[list[float], dict[str, Any]]:
    if "error" in chunk:
        raise EngineFailed(f"the engine failed while it was timed: {chunk['error']}")
    if chunk.get("choices"):
        moments = [*moments, time.monotonic()]
    return moments, chunk.get("usage") or usage
