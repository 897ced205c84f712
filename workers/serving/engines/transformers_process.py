"""The process of the transformers engine: loads a checkpoint, then serves it until it is killed."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

from app.connections import SERVERS_KEEP_SECONDS
from app.storage.pooling import read_pooling
from workers.serving.batching.application import create_application
from workers.serving.batching.generator import BatchedGenerator
from workers.serving.embedding.application import create_embedding_application
from workers.serving.embedding.model import EmbeddingModel
from workers.serving.engines.base import API_KEY_VARIABLE


def main() -> None:
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    app = _application(arguments, Path(arguments.model))
    address = {"host": arguments.host, "port": arguments.port}
    uvicorn.run(app, **address, log_level="warning", timeout_keep_alive=SERVERS_KEEP_SECONDS)


def _application(arguments: argparse.Namespace, folder: Path) -> FastAPI:
    identity = {"public_name": arguments.name, "api_key": os.environ[API_KEY_VARIABLE]}
    pooling = read_pooling(folder)
    if pooling is not None:
        model = EmbeddingModel(folder, pooling, context_length=arguments.context_length, dtype=arguments.dtype)
        return create_embedding_application(model, **identity)
    generator = BatchedGenerator(
        folder,
        context_length=arguments.context_length,
        cache_tokens=arguments.cache_tokens,
        slots=arguments.slots,
        dtype=arguments.dtype,
    )
    return create_application(generator, **identity)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--name", "--host", "--dtype"):
        parser.add_argument(name, required=True)
    for name in ("--port", "--context-length", "--cache-tokens", "--slots", "--threads"):
        parser.add_argument(name, type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
