"""How much memory a served model takes: weights, key-value cache, and what its engine needs besides.

The cache follows from the shape of attention alone: Pope et al. 2022, https://arxiv.org/abs/2211.05102, §3.3;
sliding windows: https://arxiv.org/abs/2004.05150; latent attention: https://arxiv.org/abs/2405.04434, §2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MIB: Final = 1024**2
CACHE_BYTES_PER_VALUE: Final = 2  # engines keep keys and values in 16 bits unless told otherwise
# How many requests of full length the key-value cache holds at once. Slots share it, so that many short requests
# run together without memory for as many long ones.
CACHED_CONTEXTS: Final = 4
# Tokens that an engine works on at a time while it reads a prompt: its scratch memory grows with them.
BATCH_TOKENS: Final = 512
# What `pass_tokens` goes by.
SHORT_PROMPT_TOKENS: Final = 64
SHORTEST_PASS_TOKENS: Final = 256
LONGEST_PASS_TOKENS: Final = 2048
# What an engine's process takes beside weights and cache: measured.
RUNTIME_BYTES: Final = {"llama_cpp": 60 * MIB, "transformers": 540 * MIB, "vllm": 2048 * MIB}
# What the library with the kernels for GPTQ's and AWQ's layouts takes besides.
KERNEL_BYTES: Final = 200 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What a token leaves in the cache. `sliding_layers` of the `layers` see the last `window` tokens only.

    `values_per_layer` counts numbers per token and layer: keys and values of all key-value heads, or the
    compressed vector of latent attention.
    """

    layers: int
    values_per_layer: int
    sliding_layers: int = 0
    window: int = 0
    hidden_size: int = 0
    vocabulary_size: int = 0

    def cache_bytes(self, tokens: int, *, sequences: int = 1, bytes_per_value: float = CACHE_BYTES_PER_VALUE) -> int:
        """The size of a cache for `tokens` tokens in all, of `sequences` requests at a time."""
        sliding = min(tokens, self.window * sequences)
        kept = (self.layers - self.sliding_layers) * tokens + self.sliding_layers * sliding
        return int(kept * self.values_per_layer * bytes_per_value)

    @property
    def scratch_bytes(self) -> int:
        """Activations of one batch in 32 bits, of which the scores over the vocabulary are by far the largest."""
        return BATCH_TOKENS * (self.vocabulary_size + 8 * self.hidden_size) * 4


def shared_tokens(context_length: int, requests: int) -> int:
    """The size, in tokens, of the cache that so many requests at a time share."""
    return context_length * min(requests, CACHED_CONTEXTS)


def pass_tokens(slots: int) -> int:
    """How many tokens the transformers engine works on in one pass.

    Enough that short prompts for all slots are read together: read one after the other, they also end so, and passes
    at the end are of few. Not more: streams wait while a part of a long prompt is read.
    """
    return max(min(SHORT_PROMPT_TOKENS * slots, LONGEST_PASS_TOKENS), SHORTEST_PASS_TOKENS, slots)


def attention_shape(config: Mapping[str, Any]) -> AttentionShape | None:
    """From a Hugging Face `config.json`; None where it does not say enough. Nested text configurations count."""
    config = config.get("text_config") or config
    layers, hidden = config.get("num_hidden_layers"), config.get("hidden_size")
    heads = config.get("num_attention_heads")
    if not (isinstance(layers, int) and isinstance(hidden, int) and isinstance(heads, int)) or not heads:
        return None
    return AttentionShape(
        layers=layers,
        values_per_layer=_values_per_layer(config, hidden, heads),
        **_sliding(config, layers),
        hidden_size=hidden,
        vocabulary_size=int(config.get("vocab_size") or 0),
    )


def _values_per_layer(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    if latent := config.get("kv_lora_rank"):
        return int(latent) + int(config.get("qk_rope_head_dim") or 0)
    head_size = int(config.get("head_dim") or hidden // heads)
    return 2 * int(config.get("num_key_value_heads") or heads) * head_size


def _sliding(config: Mapping[str, Any], layers: int) -> dict[str, int]:
    window = config.get("sliding_window")
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return {}
    kinds = config.get("layer_types")
    count = sum(kind == "sliding_attention" for kind in kinds) if isinstance(kinds, list) else layers
    return {"sliding_layers": count, "window": window}


def adapter_bytes(config: Mapping[str, Any], rank: int) -> int:
    """Of a low-rank adapter beside the seven matrices of every layer, in 16 bits; 0 where the file says too little.

    A matrix (out, in) gets two, (rank, in) and (out, rank): https://arxiv.org/abs/2106.09685, §4.1.
    """
    config = config.get("text_config") or config
    if attention_shape(config) is None:
        return 0
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_size = int(config.get("head_dim") or hidden // heads)
    queries, keys = heads * head_size, int(config.get("num_key_value_heads") or heads) * head_size
    wide = int(config.get("intermediate_size") or 4 * hidden)
    widths = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + wide)
    return int(config["num_hidden_layers"] * widths * rank * 2)


def attention_shape_of_gguf(keys: Mapping[str, Any]) -> AttentionShape | None:
    """From a GGUF file's keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. None: not enough."""
    prefix = keys.get("general.architecture")
    layers, hidden = keys.get(f"{prefix}.block_count"), keys.get(f"{prefix}.embedding_length")
    heads = keys.get(f"{prefix}.attention.head_count")
    if not (isinstance(layers, int) and isinstance(hidden, int) and isinstance(heads, int)) or not heads:
        return None
    # Some architectures list the heads of each layer; the largest number bounds them all.
    given = keys.get(f"{prefix}.attention.head_count_kv", heads)
    cached_heads = max(given) if isinstance(given, list) else given
    key = keys.get(f"{prefix}.attention.key_length", hidden // heads)
    value = keys.get(f"{prefix}.attention.value_length", hidden // heads)
    return AttentionShape(
        layers=layers,
        values_per_layer=int(cached_heads * (key + value)),
        hidden_size=hidden,
        vocabulary_size=int(keys.get(f"{prefix}.vocab_size") or keys.get("tokenizer.ggml.tokens") or 0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a loaded model is expected to take, by what for."""

    weights_bytes: int
    cache_bytes: int
    runtime_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.runtime_bytes

    def view(self) -> dict[str, int]:
        return {
            "weights_bytes": self.weights_bytes,
            "cache_bytes": self.cache_bytes,
            "runtime_bytes": self.runtime_bytes,
            "total_bytes": self.total_bytes,
        }
