"""One request for several choices, asked as one request for each, and put together again."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.domain.errors import BitmillError
from workers.serving.contract.call import Call
from workers.serving.dialects.base import DONE, Upstream, event, objects, streamed, whole
from workers.serving.merging import in_turn as one_by_one
from workers.serving.merging import merged

Edit = Callable[[dict[str, Any]], None]
Chunks = AsyncGenerator[tuple[int, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A request for one choice, to an engine's own `path`.

    `edit` changes that choice in place, whether it is whole or a stream's piece; an emptied piece is left out.
    """

    path: str
    body: dict[str, Any]
    prompt: int
    edit: Edit
    opening: dict[str, Any] | None = None
    # Whether output was asked for: where not, an engine may count some all the same.
    counts_output: bool = True


@dataclass(slots=True)
class Together:
    """The usage of several choices: a prompt counts once, however many choices it has."""

    prompts: dict[int, int] = field(default_factory=dict)
    completion_tokens: int = 0

    def add(self, part: Part, usage: dict[str, Any]) -> None:
        self.prompts[part.prompt] = usage["prompt_tokens"]
        self.completion_tokens += usage["completion_tokens"] if part.counts_output else 0

    def view(self) -> dict[str, int]:
        prompt_tokens = sum(self.prompts.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
        }


async def ask_whole(upstream: Upstream, call: Call, parts: Sequence[Part], *, in_turn: bool) -> httpx.Response:
    """One answer with every part's choice; or the first refusal, as it came."""
    answers: list[httpx.Response] = []
    if in_turn:
        for part in parts:
            answers.append(await _read(upstream, part))
    else:
        answers = await _all([_read(upstream, part) for part in parts])
    refusal = next((answer for answer in answers if answer.status_code >= 400), None)
    return refusal if refusal is not None else whole(_together(call, [answer.json() for answer in answers], parts))


async def _read(upstream: Upstream, part: Part) -> httpx.Response:
    answer = await upstream.post(part.path, part.body)
    try:
        await answer.aread()
    finally:
        await answer.aclose()
    return answer


async def _all(work: list[Any]) -> list[Any]:
    """Every result, or the first error after the rest was cancelled."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _together(call: Call, answers: list[dict[str, Any]], parts: Sequence[Part]) -> dict[str, Any]:
    usage = Together()
    choices = []
    for index, (answer, part) in enumerate(zip(answers, parts, strict=True)):
        (choice,) = answer["choices"]
        part.edit(choice)
        choices.append({**choice, "index": index})
        usage.add(part, answer["usage"])
    kind = "chat.completion" if call.is_chat else "text_completion"
    return {**_head(call), "object": kind, "choices": choices, "usage": usage.view()}


async def ask_streamed(upstream: Upstream, call: Call, parts: Sequence[Part], *, in_turn: bool) -> httpx.Response:
    """One stream of every part's pieces; or, where the first is refused, that refusal."""
    first = await upstream.post(parts[0].path, parts[0].body)
    if first.status_code >= 400:
        return first
    streams = [_pieces(upstream, part, first if index == 0 else None) for index, part in enumerate(parts)]
    return streamed(_events(call, parts, one_by_one(streams) if in_turn else merged(streams)), first.aclose)


async def _pieces(
    upstream: Upstream, part: Part, opened: httpx.Response | None
) -> AsyncGenerator[dict[str, Any], None]:
    try:
        answer = opened or await upstream.post(part.path, part.body)
    except BitmillError as error:
        # The stream has begun: it has to say so itself.
        yield {"error": error.to_dict()}
        return
    try:
        if answer.status_code >= 400:
            yield json.loads(await answer.aread())
            return
        async with aclosing(objects(answer.aiter_raw())) as found:
            async for value in found:
                yield value
    finally:
        await answer.aclose()


async def _events(call: Call, parts: Sequence[Part], chunks: Chunks) -> AsyncGenerator[bytes, None]:
    usage = Together()
    head = _head(call)
    async with aclosing(chunks):
        for index, part in enumerate(parts):
            if part.opening is not None:
                yield event({**head, "choices": [{"index": index, **part.opening}]})
        async for index, value in chunks:
            if "error" in value:
                yield event(value)
                return
            if value.get("usage"):
                usage.add(parts[index], value["usage"])
            for choice in value["choices"]:
                parts[index].edit(choice)
                if choice:
                    yield event({**head, "choices": [{**choice, "index": index}]})
    # The host takes it out again where the client did not ask.
    yield event({**head, "choices": [], "usage": usage.view()})
    yield DONE


def _head(call: Call) -> dict[str, Any]:
    prefix, kind = ("chatcmpl", "chat.completion.chunk") if call.is_chat else ("cmpl", "text_completion")
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": call.body["model"],
    }
