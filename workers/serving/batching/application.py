"""The transformers engine's HTTP side."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from app.domain.errors import BitmillError, InvalidParameter
from app.processes import keep_what_is_loaded
from app.streaming import ClientGone, RelayResponse, unless_disconnected
from workers.serving.batching.adapters import Adapters, LowRank
from workers.serving.batching.answers import Answer, ChatAnswer, TextAnswer, Usage, WholeChoice
from workers.serving.batching.generator import BatchedGenerator, Piece
from workers.serving.batching.http import health, on_bitmill_error, read_body, require_key
from workers.serving.batching.prompts import (
    Job,
    chat_prompts,
    jobs,
    prompt_echoes,
    text_prompts,
    wanted_logprobs,
)
from workers.serving.batching.tools import ToolCallReader
from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.completions import CompletionRequest
from workers.serving.contract.fields import GenerationFields
from workers.serving.contract.parsing import parse_request
from workers.serving.merging import in_turn, merged

Pieces = AsyncGenerator[tuple[int, Piece], None]


def create_application(generator: BatchedGenerator, *, public_name: str, api_key: str) -> FastAPI:
    app = FastAPI(lifespan=_lifespan)
    app.state.generator = generator
    app.state.public_name = public_name
    app.state.api_key = api_key
    app.add_exception_handler(BitmillError, on_bitmill_error)
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/cache_usage", cache_usage, methods=["GET"])
    app.add_api_route("/passes", passes, methods=["GET"])
    app.add_api_route("/adapters", load_adapter, methods=["POST"], response_model=None)
    app.add_api_route("/adapters/{name:path}", unload_adapter, methods=["DELETE"], response_model=None)
    app.add_api_route("/v1/chat/completions", chat_completions, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", completions, methods=["POST"], response_model=None)
    app.add_api_route("/v1/embeddings", refuse_embeddings, methods=["POST"], response_model=None)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    # The server listens only after this: whoever finds it healthy finds the model loaded and warm.
    app.state.generator.start()
    await app.state.generator.warm_up()
    keep_what_is_loaded()
    give_back_freed_memory()
    yield


def give_back_freed_memory() -> None:
    """Kernels that rearrange weights at their first use need a second copy meanwhile, which glibc would keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


async def cache_usage(request: Request) -> float:
    generator: BatchedGenerator = request.app.state.generator
    return generator.cache_usage()


async def passes(request: Request) -> int:
    """How often the model was run: the serving host sees by it that generation goes on."""
    generator: BatchedGenerator = request.app.state.generator
    return generator.passes


async def load_adapter(request: Request) -> JSONResponse:
    """Body: the adapter's `name` and the `folders` that make it. Requests for a model of that name use it then."""
    body = await read_body(request)
    adapters = request.app.state.generator.adapters
    await asyncio.to_thread(adapters.load, body["name"], *map(Path, body["folders"]))
    return JSONResponse({"loaded": sorted(adapters.loaded)})


async def unload_adapter(request: Request, name: str) -> JSONResponse:
    require_key(request)
    adapters = request.app.state.generator.adapters
    adapters.unload(name)
    return JSONResponse({"loaded": sorted(adapters.loaded)})


def _adapter(request: Request, model: str) -> LowRank | None:
    """What a request for this model is answered with beside the weights. Raises ModelNotFound."""
    if model == request.app.state.public_name:
        return None
    adapters: Adapters = request.app.state.generator.adapters
    return adapters.get(model)


async def chat_completions(request: Request) -> Response:
    parsed = parse_request(ChatCompletionRequest, await read_body(request))
    generator: BatchedGenerator = request.app.state.generator
    adapter = _adapter(request, parsed.model)
    prompts = await asyncio.to_thread(chat_prompts, generator, parsed)
    todo = await asyncio.to_thread(jobs, generator, prompts, parsed, param="messages", adapter=adapter)
    answer = ChatAnswer(request.app.state.public_name, generator, top_logprobs=wanted_logprobs(parsed))
    return await _answer(request, parsed, answer, todo, Usage(sum(map(len, prompts))))


async def completions(request: Request) -> Response:
    parsed = parse_request(CompletionRequest, await read_body(request))
    generator: BatchedGenerator = request.app.state.generator
    adapter = _adapter(request, parsed.model)
    prompts = await asyncio.to_thread(text_prompts, generator, parsed)
    todo = await asyncio.to_thread(jobs, generator, prompts, parsed, param="prompt", adapter=adapter)
    echoes = await asyncio.to_thread(prompt_echoes, generator, parsed, prompts, adapter) if parsed.echo else None
    answer = TextAnswer(request.app.state.public_name, generator, top_logprobs=wanted_logprobs(parsed), echoes=echoes)
    return await _answer(request, parsed, answer, todo, Usage(sum(map(len, prompts))))


async def refuse_embeddings(request: Request) -> Response:
    raise InvalidParameter(
        f"the model {request.app.state.public_name!r} writes text; embeddings need a model that was made for them",
        param="model",
    )


async def _answer(
    request: Request, parsed: GenerationFields, answer: Answer, todo: list[Job], usage: Usage
) -> Response:
    generator: BatchedGenerator = request.app.state.generator
    starts = [_start(generator, job) for job in todo]
    # Choices that run beside each other change each other's rounding errors, and so what a seed gives.
    beside = parsed.seed is None and len(starts) > 1
    pieces = merged(starts) if beside else in_turn(starts)
    if parsed.stream:
        events = _events(pieces, answer, usage, len(todo), include_usage=parsed.includes_usage)
        return RelayResponse(
            events,
            events.aclose,
            status_code=200,
            headers={"content-type": "text/event-stream; charset=utf-8"},
        )
    try:
        return JSONResponse(await unless_disconnected(request.receive, _whole(pieces, answer, usage, len(todo))))
    except ClientGone:
        return Response(status_code=499)


async def _start(generator: BatchedGenerator, job: Job) -> AsyncGenerator[Piece, None]:
    if job.max_tokens == 0:
        yield Piece(text="", tokens=0, finish_reason="length")
        return
    pieces = generator.generate(
        job.prompt,
        job.settings,
        max_tokens=job.max_tokens,
        stops=job.stops,
        constraint=job.constraint,
        adapter=job.adapter,
    )
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece if job.reader is None else _with_calls(piece, job.reader)


def _with_calls(piece: Piece, reader: ToolCallReader) -> Piece:
    text, calls = reader.read(piece.text, final=piece.finish_reason is not None)
    reason = "tool_calls" if piece.finish_reason == "stop" and reader.calls else piece.finish_reason
    return replace(piece, text=text, calls=tuple(calls), finish_reason=reason)


async def _whole(pieces: Pieces, answer: Answer, usage: Usage, count: int) -> dict[str, Any]:
    choices = [WholeChoice() for _ in range(count)]
    for choice, echo in zip(choices, answer.echoes or (), strict=False):
        choice.add(echo)
    async with aclosing(pieces):
        async for index, piece in pieces:
            choices[index].add(piece)
    usage.completion_tokens = sum(choice.tokens for choice in choices)
    return answer.whole(choices, usage)


async def _events(
    pieces: Pieces, answer: Answer, usage: Usage, count: int, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    tokens = [0] * count
    # Not before there is a token: the host has a deadline for that, which an opening would meet for it.
    openings = [opening for index in range(count) if (opening := answer.opening(index))]
    async with aclosing(pieces):
        try:
            async for index, piece in pieces:
                while openings:
                    yield _event(openings.pop(0))
                tokens[index] = piece.tokens
                yield _event(answer.chunk(index, piece))
        except BitmillError as error:
            yield _event({"error": error.to_dict()})
            return
    usage.completion_tokens = sum(tokens)
    if include_usage:
        yield _event(answer.usage_chunk(usage))
    yield b"data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
