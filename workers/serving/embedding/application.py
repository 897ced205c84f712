"""The HTTP side of a model for embeddings. https://platform.openai.com/docs/api-reference/embeddings/object"""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from app.domain.errors import BitmillError, ContextLengthExceeded, InvalidParameter
from workers.serving.batching.http import health, on_bitmill_error, read_body
from workers.serving.contract.completions import EmbeddingsRequest
from workers.serving.contract.parsing import parse_request
from workers.serving.embedding.model import EmbeddingModel


def create_embedding_application(model: EmbeddingModel, *, public_name: str, api_key: str) -> FastAPI:
    app = FastAPI()
    app.state.model = model
    app.state.public_name = public_name
    app.state.api_key = api_key
    app.add_exception_handler(BitmillError, on_bitmill_error)
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/cache_usage", cache_usage, methods=["GET"])
    app.add_api_route("/passes", passes, methods=["GET"])
    app.add_api_route("/v1/embeddings", embeddings, methods=["POST"], response_model=None)
    for path in ("/v1/chat/completions", "/v1/completions"):
        app.add_api_route(path, refuse, methods=["POST"], response_model=None)
    return app


async def cache_usage() -> float:
    return 0.0  # nothing is kept between requests


async def passes(request: Request) -> int:
    """How often the model was run: the serving host sees by it that it gets on."""
    model: EmbeddingModel = request.app.state.model
    return model.passes


async def refuse(request: Request) -> JSONResponse:
    raise InvalidParameter(
        f"the model {request.app.state.public_name!r} is one for embeddings and writes no text; use /v1/embeddings",
        param="model",
    )


async def embeddings(request: Request) -> JSONResponse:
    parsed = parse_request(EmbeddingsRequest, await read_body(request))
    model: EmbeddingModel = request.app.state.model
    inputs = await asyncio.to_thread(_inputs, model, parsed)
    vectors = await asyncio.to_thread(model.vectors, inputs)
    tokens = sum(map(len, inputs))
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, parsed.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": request.app.state.public_name, "usage": usage})


def _inputs(model: EmbeddingModel, request: EmbeddingsRequest) -> list[list[int]]:
    inputs = [model.tokens(given) if isinstance(given, str) else given for given in request.inputs]
    for tokens in inputs:
        if len(tokens) > model.context_length:
            raise ContextLengthExceeded(
                f"this model reads {model.context_length} tokens at most and an `input` has {len(tokens)}; split it",
                param="input",
            )
        if max(tokens) >= model.vocabulary_size:
            raise InvalidParameter(
                f"`input` holds the token {max(tokens)}; the model's vocabulary has {model.vocabulary_size}",
                param="input",
            )
    return inputs


def _encoded(vector: list[float], encoding: str) -> Any:
    """As numbers, or as base64 of little-endian 32-bit floats."""
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
