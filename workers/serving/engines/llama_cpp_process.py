"""The process of the llama_cpp engine: llama.cpp's server, in this process, until it is killed."""

from __future__ import annotations

import argparse
import os
import threading

import xllamacpp

from workers.serving.engines.base import API_KEY_VARIABLE


def main() -> None:
    # The constructor returns when the model is loaded; the server's own threads do the rest.
    server = xllamacpp.Server(parameters(_arguments()))
    threading.Event().wait()
    del server


def parameters(arguments: argparse.Namespace) -> xllamacpp.CommonParams:
    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.model_alias = {arguments.alias}
    params.hostnames = [arguments.host]
    params.port = arguments.port
    params.api_keys = [os.environ[API_KEY_VARIABLE]]
    # One cache that all slots share, and no slot longer than the context.
    params.n_ctx = arguments.cache_tokens
    params.kv_unified = True
    params.kv_unified_per_slot = arguments.context_length
    params.n_parallel = arguments.slots
    # Without a limit of its own a request would run until the context is full.
    params.n_predict = arguments.context_length
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = max(arguments.threads, os.cpu_count() or 1)
    params.use_jinja = True
    params.offline = True
    params.ui = False
    return params


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--alias", "--host"):
        parser.add_argument(name, required=True)
    for name in ("--port", "--context-length", "--cache-tokens", "--slots", "--threads"):
        parser.add_argument(name, type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
