"""Cache sizes against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.memory import attention_shape, attention_shape_of_gguf

# SmolLM2-135M: 30 layers, 3 key-value heads of 64.
SMOLLM = {
    "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 49152,
}  # fmt: skip


def cache_bytes(config: dict[str, Any], tokens: int, sequences: int = 1) -> int:
    shape = attention_shape(config)
    assert shape is not None
    return shape.cache_bytes(tokens, sequences=sequences)


def test_keys_and_values_of_every_key_value_head() -> None:
    assert cache_bytes(SMOLLM, 1000) == 30 * 2 * 3 * 64 * 2 * 1000


def test_heads_may_have_a_size_of_their_own() -> None:
    assert cache_bytes(SMOLLM | {"head_dim": 128}, 10) == 30 * 2 * 3 * 128 * 2 * 10


def test_without_grouping_every_head_is_kept() -> None:
    config = {name: value for name, value in SMOLLM.items() if name != "num_key_value_heads"}
    assert cache_bytes(config, 10) == 30 * 2 * 576 * 2 * 10


def test_sliding_layers_keep_their_window_for_each_request() -> None:
    kinds = ["sliding_attention"] * 25 + ["full_attention"] * 5
    config = SMOLLM | {"sliding_window": 100, "layer_types": kinds}
    per_layer = 2 * 3 * 64 * 2
    assert cache_bytes(config, 1000, sequences=2) == per_layer * (5 * 1000 + 25 * 200)
    assert cache_bytes(config, 50, sequences=2) == per_layer * 30 * 50
    assert cache_bytes(config | {"use_sliding_window": False}, 1000) == per_layer * 30 * 1000


def test_latent_attention_keeps_the_compressed_vector() -> None:
    config = SMOLLM | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    assert cache_bytes(config, 10) == 30 * 576 * 2 * 10


def test_the_text_part_of_a_larger_model_counts() -> None:
    assert cache_bytes({"text_config": SMOLLM, "vision_config": {}}, 7) == cache_bytes(SMOLLM, 7)


def test_a_configuration_that_says_too_little_has_no_shape() -> None:
    assert attention_shape({"model_type": "mamba"}) is None
    assert attention_shape_of_gguf({"general.architecture": "mamba"}) is None


@pytest.mark.parametrize("cached_heads", [3, [3, 3, 0]])
def test_a_gguf_file_says_the_same(cached_heads: int | list[int]) -> None:
    keys = {
        "general.architecture": "llama", "llama.block_count": 30, "llama.embedding_length": 576,
        "llama.attention.head_count": 9, "llama.attention.head_count_kv": cached_heads, "llama.vocab_size": 49152,
    }  # fmt: skip
    assert attention_shape_of_gguf(keys) == attention_shape(SMOLLM)
