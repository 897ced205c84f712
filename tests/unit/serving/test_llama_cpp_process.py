"""What llama.cpp's server is told before it loads a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from workers.serving.engines import llama_cpp_process
from workers.serving.engines.base import API_KEY_VARIABLE


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "the-key")


def parameters(folder: Path, **changes: Any) -> Any:
    values = {
        "model": str(folder / "model.gguf"), "alias": "org/m", "host": "127.0.0.1", "port": 1, "threads": 3,
        "context_length": 100, "cache_tokens": 400, "slots": 8, "guess": 0, "embedding": 0, "draft": "",
    }  # fmt: skip
    return llama_cpp_process.parameters(argparse.Namespace(**values | changes))


def test_slots_share_one_cache(tmp_path: Path) -> None:
    params = parameters(tmp_path)
    assert (params.n_ctx, params.n_parallel, params.kv_unified, params.kv_unified_per_slot) == (400, 8, True, 100)
    assert params.n_threads_http > params.n_parallel
    assert params.cache_ram_mib == 0


def test_a_model_for_embeddings_reads_a_text_in_one_go(tmp_path: Path) -> None:
    assert parameters(tmp_path).embedding is False
    params = parameters(tmp_path, embedding=1)
    assert (params.embedding, params.n_batch, params.n_ubatch) == (True, 100, 100)


def test_what_a_request_leaves_open_is_as_openais_api_has_it(tmp_path: Path) -> None:
    sampling = parameters(tmp_path).sampling
    assert (sampling.temp, sampling.top_p, sampling.top_k, sampling.min_p) == (1, 1, 0, 0)


def test_or_as_the_models_makers_say(tmp_path: Path) -> None:
    config = {"do_sample": True, "temperature": 0.5, "top_k": 20, "top_p": 0.75}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    sampling = parameters(tmp_path).sampling
    assert (sampling.temp, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.75, 20, 0)


def test_guessing_by_the_text_so_far(tmp_path: Path) -> None:
    speculative = parameters(tmp_path, guess=5).speculative
    assert [kind.name for kind in speculative.types] == ["COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE"]
    assert speculative.ngram_simple.size_m == 5


def test_guessing_by_a_draft_model(tmp_path: Path) -> None:
    speculative = parameters(tmp_path, guess=5, draft=str(tmp_path / "draft.gguf")).speculative
    assert [kind.name for kind in speculative.types] == ["COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"]
    assert (speculative.draft.mparams.path, speculative.draft.n_max) == (str(tmp_path / "draft.gguf"), 5)
