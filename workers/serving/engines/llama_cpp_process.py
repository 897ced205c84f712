"""The process of the llama_cpp engine: llama.cpp's server, in this process, until it is killed."""

from __future__ import annotations

import argparse
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Final

import xllamacpp

from workers.serving.admission import ready_ahead
from workers.serving.engines.base import API_KEY_VARIABLE
from workers.serving.engines.llama_cpp_threads import decode_threads, usable_cores

# What is decoded to find the best number of threads, and how often; the best time counts.
PROBE: Final = {"prompt": "Once upon a time", "n_predict": 24, "temperature": 0, "ignore_eos": True}
ROUNDS: Final = 2
# HTTP threads beyond those of requests on slots and ready ahead: for health and for metrics.
SPARE_HTTP_THREADS: Final = 8


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    arguments = _arguments()
    if not arguments.threads:
        arguments.threads = decode_threads(
            Path(arguments.model), Path(arguments.measured), lambda threads: _decode_seconds(arguments.model, threads)
        )
    # The constructor returns when the model is loaded; the server's own threads do the rest.
    server = xllamacpp.Server(parameters(arguments))
    threading.Event().wait()
    del server


def parameters(arguments: argparse.Namespace) -> xllamacpp.CommonParams:
    params = _basic(arguments.model, arguments.threads)
    params.model_alias = {arguments.alias}
    params.hostnames = [arguments.host]
    params.port = arguments.port
    params.api_keys = [os.environ[API_KEY_VARIABLE]]
    # One cache that all slots share, and no slot longer than the context.
    params.n_ctx = arguments.cache_tokens
    params.kv_unified = True
    params.kv_unified_per_slot = arguments.context_length
    params.n_parallel = arguments.slots
    params.n_threads_http = arguments.slots + ready_ahead(arguments.slots) + SPARE_HTTP_THREADS
    # Without a limit of its own a request would run until the context is full.
    params.n_predict = arguments.context_length
    # Prefixes are shared in the cache itself. A second store of them beside it would grow to gigabytes.
    params.cache_ram_mib = 0
    params.use_jinja = True
    # A conversation that ends with the assistant is answered, not continued.
    params.prefill_assistant = False
    _sample_as_its_makers(params, Path(arguments.model).with_name("generation_config.json"))
    if arguments.embedding:
        params.embedding = True
        # Such models read a text in one go.
        params.n_ubatch = params.n_batch = arguments.context_length
    _speculate(params, arguments)
    return params


def _basic(model: str, threads: int) -> xllamacpp.CommonParams:
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.cpuparams.n_threads = threads
    # Prompts, and the tokens of several requests, are worked on in batches, which use every core well.
    params.cpuparams_batch.n_threads = max(threads, usable_cores())
    params.offline = True
    params.ui = False
    return params


def _sample_as_its_makers(params: xllamacpp.CommonParams, config: Path) -> None:
    """What a request leaves open: as the model's makers say, else as OpenAI's API does; not llama.cpp's own taste.

    Otherwise the same request would be sampled differently from a model's GGUF and from its safetensors.
    """
    given = json.loads(config.read_text()) if config.is_file() else {}
    own = given if given.get("do_sample") else {}
    params.sampling.temp = own.get("temperature") or 1.0
    params.sampling.top_p = own.get("top_p") or 1.0
    params.sampling.top_k = own.get("top_k") or 0
    params.sampling.min_p = own.get("min_p") or 0.0


def _speculate(params: xllamacpp.CommonParams, arguments: argparse.Namespace) -> None:
    if not arguments.guess:
        return
    kinds = xllamacpp.common_speculative_type
    if arguments.draft:
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        params.speculative.draft.mparams.path = arguments.draft
        params.speculative.draft.n_max = arguments.guess
    else:
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        params.speculative.ngram_simple.size_m = arguments.guess


def _decode_seconds(model: str, threads: int) -> float:
    params = _basic(model, threads)
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    server = xllamacpp.Server(params)
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        server.handle_completions(PROBE)
        best = min(best, time.perf_counter() - started)
    return best


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--alias", "--host", "--measured"):
        parser.add_argument(name, required=True)
    for name in ("--port", "--context-length", "--cache-tokens", "--slots", "--threads"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--guess", type=int, default=0)
    parser.add_argument("--embedding", type=int, default=0)
    parser.add_argument("--draft", default="")
    return parser.parse_args()


if __name__ == "__main__":
    main()
