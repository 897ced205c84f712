"""Which type each tensor of a GGUF file gets: llama.cpp's mixes and fallbacks, for dense models.

The rules are those of `llama_tensor_get_type` in https://github.com/ggml-org/llama.cpp, src/llama-quant.cpp; a test
holds them against llama.cpp itself. Mixes without rules here are counted by llama.cpp's own average of bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from app.domain.quantization.methods.gguf import BITS

Shape = tuple[int, ...]

# Weights per block, and bytes of a block: https://github.com/ggml-org/ggml, src/ggml-common.h.
BLOCKS: Final[dict[str, tuple[int, int]]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q5_1": (32, 24), "Q5_0": (32, 22),
    "Q4_1": (32, 20), "Q4_0": (32, 18), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "Q6_K": (256, 210),
    "Q5_K": (256, 176), "Q4_K": (256, 144), "Q3_K": (256, 110), "Q2_K": (256, 84),
}  # fmt: skip
# What a type becomes where its blocks do not divide a row.
FALLBACK: Final = {
    "Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
# The type of most tensors of a mix.
BASE: Final = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K",
    "Q5_1": "Q5_1", "Q5_0": "Q5_0", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q4_1": "Q4_1", "Q4_0": "Q4_0",
    "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS", "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K",
}  # fmt: skip
UNQUANTIZED: Final = frozenset({"F32", "F16", "BF16"})
# What the down projections of the first eighth of the layers get, without an importance matrix and with one.
FIRST_DOWN: Final = {
    False: {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"},
    True: {"Q4_0": "Q4_1", "Q5_0": "Q5_1"},
}
LAYER: Final = re.compile(r"\.(\d+)\.")
# How many query heads share a key-value head, from which on IQ4 mixes keep values in more bits.
SHARED_HEADS: Final = 4


def gguf_bytes(params: Any, shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> int:
    """The bytes of the weights of a GGUF file. `shapes` are those of the checkpoint's tensors, by name."""
    tied = bool(config.get("tie_word_embeddings")) or "lm_head.weight" not in shapes
    stored = {name: shape for name, shape in shapes.items() if not (tied and name == "lm_head.weight")}
    if params.quantization not in BASE:
        return int(sum(math.prod(shape) for shape in stored.values()) * BITS[params.quantization] / 8)
    return sum(
        _bytes("F32" if len(shape) < 2 else tensor_type(params, name, shape, config, tied=tied), shape)
        for name, shape in stored.items()
    )


def _bytes(type_name: str, shape: Shape) -> int:
    weights, size = BLOCKS[type_name]
    return math.prod(shape) // weights * size


def tensor_type(params: Any, name: str, shape: Shape, config: Mapping[str, Any], *, tied: bool) -> str:
    """The type of a matrix, after falling back where its rows are not whole blocks."""
    wanted = _wanted(params, name, shape[-1], config, tied=tied)
    if shape[-1] % BLOCKS[wanted][0]:
        wanted = FALLBACK.get(wanted, "F16")
    return wanted if shape[-1] % BLOCKS[wanted][0] == 0 else "F16"


def _wanted(params: Any, name: str, row: int, config: Mapping[str, Any], *, tied: bool) -> str:
    mix, base = params.quantization, BASE[params.quantization]
    is_embedding, is_output = "embed_tokens" in name, name == "lm_head.weight"
    if is_embedding and params.embedding_type in BLOCKS:
        return str(params.embedding_type)
    if (is_output or (is_embedding and tied)) and base not in UNQUANTIZED:
        if params.output_type in BLOCKS and is_output:
            return str(params.output_type)
        return "Q8_0" if row % 256 or base == "Q8_0" else "Q6_K"
    found = LAYER.search(name)
    if found is None:
        return base
    return _layer_type(mix, base, name, int(found[1]), config, weighed=params.importance_matrix != "none")


def _layer_type(mix: str, base: str, name: str, layer: int, config: Mapping[str, Any], *, weighed: bool) -> str:
    layers = int(config["num_hidden_layers"])
    if ".v_proj." in name:
        return _value_type(mix, base, layer, layers, _shared_heads(config))
    if ".down_proj." in name:
        first = FIRST_DOWN[weighed].get(mix) if layer < layers // 8 else None
        return first or _down_type(mix, base, layer, layers)
    if ".o_proj." in name:
        return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, base)
    if ".qkv_proj." in name:
        return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(mix, base)
    return base


def _shared_heads(config: Mapping[str, Any]) -> int:
    heads = int(config["num_attention_heads"])
    return heads // int(config.get("num_key_value_heads") or heads)


def _value_type(mix: str, base: str, layer: int, layers: int, shared: int) -> str:
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _deserves_more(layer, layers) else base
    if mix == "Q4_K_S":
        return "Q5_K" if layer < 4 else base
    if mix == "Q3_K_M":
        return "Q5_K" if layer < 2 else "Q4_K"
    if mix in ("IQ4_NL", "IQ4_XS"):
        return "Q5_K" if shared >= SHARED_HEADS else base
    return "Q5_K" if mix == "Q3_K_L" else base


def _down_type(mix: str, base: str, layer: int, layers: int) -> str:
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _deserves_more(layer, layers) else base
    if mix == "Q4_K_S":
        return "Q5_K" if layer < layers // 8 else base
    if mix == "Q3_K_M":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    return "Q5_K" if mix == "Q3_K_L" else base


def _deserves_more(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third in between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
