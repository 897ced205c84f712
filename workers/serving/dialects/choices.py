"""One request for several choices, asked as one request for each, and put together again."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import httpx

from app.domain.errors import BitmillError, EngineFailed
from workers.serving.contract.call import Call
from workers.serving.contract.fields import GenerationFields
from workers.serving.dialects.base import DONE, Upstream, event, objects, streamed, whole
from workers.serving.merging import in_turn as one_by_one
from workers.serving.merging import merged

Edit = Callable[[dict[str, Any]], None]
Chunks = AsyncGenerator[tuple[int, dict[str, Any]], None]


def unchanged(choice: dict[str, Any]) -> None:
    """The edit of choices that are right as they are."""


@dataclass(frozen=True, slots=True)
class Part:
    """A request for one choice, or for `choices` that are made together, to an engine's own `path`.

    `edit` changes that choice in place, whether it is whole or a stream's piece; an emptied piece is left out. It
    raises BitmillError where the choice is not what was asked for.
    """

    path: str
    body: dict[str, Any]
    prompt: int
    edit: Edit = unchanged
    opening: dict[str, Any] | None = None
    # Whether output was asked for: where not, an engine may count some all the same.
    counts_output: bool = True
    choices: int = 1


class Refusal(Exception):
    """An engine refused one part, and the client gets its answer to all."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


@dataclass(slots=True)
class Together:
    """The usage of several choices: a prompt counts once, however many choices it has."""

    prompts: dict[int, int] = field(default_factory=dict)
    completion_tokens: int = 0

    def add(self, part: Part, usage: dict[str, Any] | None) -> None:
        """`usage` None: some servers elsewhere do not tell."""
        if usage:
            self.prompts[part.prompt] = usage["prompt_tokens"]
            self.completion_tokens += usage.get("completion_tokens", 0) if part.counts_output else 0

    def view(self) -> dict[str, int]:
        prompt_tokens = sum(self.prompts.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
        }


async def ask_parts(upstream: Upstream, call: Call, parts: Sequence[Part]) -> httpx.Response:
    """One answer or stream for all parts; or the first refusal, as it came. Each part waits for its own turn."""
    request = call.request
    assert isinstance(request, GenerationFields)  # noqa: S101 -- nothing else has choices
    ask = ask_streamed if request.stream else ask_whole
    # Choices that run beside each other change each other's rounding errors, and so what a seed gives.
    return await ask(upstream, call, parts, in_turn=request.seed is not None)


async def ask_whole(upstream: Upstream, call: Call, parts: Sequence[Part], *, in_turn: bool) -> httpx.Response:
    """One answer with every part's choice; or the first refusal, as it came."""
    try:
        if in_turn:
            answers = [await _accepted(upstream, part) for part in parts]
        else:
            answers = await _all([_accepted(upstream, part) for part in parts])
    except Refusal as refusal:
        return refusal.answer
    return whole(_together(call, answers, parts))


async def _accepted(upstream: Upstream, part: Part) -> dict[str, Any]:
    answer = await read(upstream, part.path, part.body)
    if answer.is_error:
        raise Refusal(answer)
    return answer_of(answer)


async def read(upstream: Upstream, path: str, body: dict[str, Any]) -> httpx.Response:
    """The whole answer, which holds its slot no more."""
    answer = await upstream.post(path, body)
    try:
        await answer.aread()
    finally:
        await answer.aclose()
    return answer


def answer_of(answer: httpx.Response) -> dict[str, Any]:
    """Raises EngineFailed where it is no JSON object."""
    try:
        value = answer.json()
    except ValueError as error:
        raise EngineFailed("the engine gave an answer that is not JSON; send the request again") from error
    if not isinstance(value, dict):
        raise EngineFailed("the engine gave an answer that is no JSON object; send the request again")
    return value


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
    for answer, part, first in zip(answers, parts, _firsts(parts), strict=True):
        for choice in answer.get("choices") or ():
            part.edit(choice)
            choices.append({**choice, "index": first + choice.get("index", 0)})
        usage.add(part, answer.get("usage"))
    kind = "chat.completion" if call.is_chat else "text_completion"
    return {**_head(call), "object": kind, "choices": choices, "usage": usage.view()}


def _firsts(parts: Sequence[Part]) -> list[int]:
    """The index of each part's first choice."""
    return [0, *accumulate(part.choices for part in parts[:-1])]


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
    firsts = _firsts(parts)
    async with aclosing(chunks):
        for first, part in zip(firsts, parts, strict=True):
            if part.opening is not None:
                yield event({**head, "choices": [{"index": first, **part.opening}]})
        async for number, value in chunks:
            if "error" in value:
                yield event(value)
                return
            usage.add(parts[number], value.get("usage"))
            for choice in value.get("choices") or ():
                place = firsts[number] + choice.get("index", 0)
                try:
                    parts[number].edit(choice)
                except BitmillError as error:
                    # In place of its end: what the client has is not an answer.
                    yield event({"error": error.to_dict()})
                    return
                if choice:
                    yield event({**head, "choices": [{**choice, "index": place}]})
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
