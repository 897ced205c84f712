"""Memory estimates against sums done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from app.domain.hardware import Device
from app.domain.memory import BATCH_TOKENS, KERNEL_BYTES, pass_tokens
from app.settings import Settings
from tests.fakes.engine import pretend_vllm
from workers.serving.engines.base import EngineOptions, Guessing
from workers.serving.engines.llama_cpp import LlamaCppEngine
from workers.serving.engines.transformers import TransformersEngine
from workers.serving.engines.vllm import VllmEngine
from workers.serving.sizing import estimate_memory, stored_bytes

CONFIG = {
    "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100,
}  # fmt: skip
OPTIONS = EngineOptions(public_name="m", context_length=64, slots=2)


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], **quantization: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": quantization or None}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_weights_cache_and_engine(settings: Settings, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", {"w": torch.zeros(1000, dtype=torch.bfloat16)})
    engine = TransformersEngine(settings)
    estimate = estimate_memory(folder, OPTIONS, engine)
    assert estimate.weights_bytes == stored_bytes(folder)
    assert estimate.cache_bytes == 2 * (2 * 4) * 2 * OPTIONS.cache_tokens  # layers, values per layer, bytes, tokens
    scratch = BATCH_TOKENS * (100 + 8 * 8) * 4
    assert estimate.runtime_bytes == engine.spec.runtime_bytes + scratch + engine.pass_bytes(OPTIONS)


def test_thirty_two_bits_take_twice_as_much(settings: Settings, tmp_path: Path) -> None:
    half = checkpoint(tmp_path / "half", {"w": torch.zeros(1000, dtype=torch.bfloat16)})
    asked, engine = replace(OPTIONS, dtype="float32"), TransformersEngine(settings)
    usual, wide = estimate_memory(half, OPTIONS, engine), estimate_memory(half, asked, engine)
    assert wide.weights_bytes == usual.weights_bytes + 2000
    assert wide.cache_bytes == 2 * usual.cache_bytes


def test_the_cache_of_a_model_in_thirty_two_bits_has_as_many(settings: Settings, tmp_path: Path) -> None:
    full = checkpoint(tmp_path / "full", {"w": torch.zeros(1000)})
    engine = TransformersEngine(settings)
    before = estimate_memory(full, OPTIONS, engine).cache_bytes
    (full / "config.json").write_text(json.dumps(CONFIG | {"dtype": "float32"}))
    assert estimate_memory(full, OPTIONS, engine).cache_bytes == 2 * before
    assert estimate_memory(full, replace(OPTIONS, dtype="bfloat16"), engine).cache_bytes == before


def test_what_transformers_unpacks_counts_unpacked(settings: Settings, tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(1000, dtype=torch.int8), "norm": torch.zeros(10, dtype=torch.bfloat16)}
    scheme = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}
    folder = checkpoint(tmp_path / "m", tensors, **scheme)
    assert TransformersEngine(settings).weights_bytes(folder) == stored_bytes(folder) + 1000


def test_packed_four_bits_unpack_to_four_times_as_much(settings: Settings, tmp_path: Path) -> None:
    scheme = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    folder = checkpoint(tmp_path / "m", {"w": torch.zeros(1000, dtype=torch.int32)}, **scheme)
    assert TransformersEngine(settings).weights_bytes(folder) == stored_bytes(folder) + 3 * 4000


def test_gptq_needs_its_library(settings: Settings, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", {"w": torch.zeros(10)}, quant_method="gptq")
    engine = TransformersEngine(settings)
    assert engine.runtime_bytes(folder) == engine.spec.runtime_bytes + KERNEL_BYTES


@pytest.mark.parametrize(("slots", "tokens"), [(1, 256), (16, 1024), (32, 2048), (64, 2048), (4096, 4096)])
def test_short_prompts_for_all_slots_are_read_in_one_pass(slots: int, tokens: int, settings: Settings) -> None:
    options = EngineOptions(public_name="m", context_length=1000, slots=slots)
    assert pass_tokens(slots) == tokens
    assert TransformersEngine(settings).pass_bytes(options) == tokens * (min(slots, 4) * 1000 + tokens) * 2


def test_a_draft_model_counts_too(settings: Settings, tmp_path: Path) -> None:
    for name, size in (("large", 1000), ("small", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").write_bytes(bytes(size))
    options = EngineOptions(
        public_name="m", context_length=64, slots=1, speculation=Guessing(tokens=4, draft=tmp_path / "small")
    )
    estimate = estimate_memory(tmp_path / "large", options, LlamaCppEngine(settings))
    assert estimate.weights_bytes == 1100
    assert estimate.cache_bytes == 0  # no GGUF file at all: the engine will say so


def test_the_cache_of_vllm_is_whole_blocks_and_has_room_for_the_draft_model(settings: Settings, tmp_path: Path) -> None:
    large, small = (checkpoint(tmp_path / name, {"w": torch.zeros(10)}) for name in ("large", "small"))
    pretend_vllm(settings, Device.CPU)
    engine, sliding = VllmEngine(settings), {"sliding_window": 4, "layer_types": ["sliding_attention"] * 2}
    (small / "config.json").write_text(json.dumps(CONFIG | sliding))
    alone = estimate_memory(large, OPTIONS, engine)
    # The slots' 128 tokens fill a block of that many, each slot may have one that is part empty, one is kept back.
    assert alone.cache_bytes == 2 * (2 * 4) * 2 * 4 * 128
    both = estimate_memory(large, replace(OPTIONS, speculation=Guessing(tokens=4, draft=small)), engine)
    assert both.cache_bytes == 2 * alone.cache_bytes
    assert estimate_memory(large, replace(OPTIONS, dtype="float32"), engine).cache_bytes == 2 * alone.cache_bytes
