"""Rotary position embeddings: base, scaling, and the factors that GGUF keeps as tensors.

Definitions: transformers' modeling_rope_utils; for YaRN arXiv:2309.00071, for LongRoPE arXiv:2402.13753.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType

from app.domain.errors import IncompatibleModel
from workers.quantization.gguf.families import Config, Family

Rope = dict[str, Any]


def rope_of(config: Config) -> Rope:
    """The parameters of the layers that attend to the whole context."""
    rope = config["rope_parameters"]
    return dict(rope.get("full_attention", rope))


def write_rope(writer: GGUFWriter, family: Family, config: Config) -> None:
    """Raises IncompatibleModel for a scaling that llama.cpp does not apply to the family."""
    rope = rope_of(config)
    kind = rope["rope_type"]
    if kind not in family.rope_types:
        raise IncompatibleModel(
            f"llama.cpp applies no rotary scaling of type {kind!r} to {family.arch.name.lower()}; choose a safetensors "
            f"method such as bitsandbytes",
            param="model",
        )
    writer.add_rope_dimension_count(rotated_size(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if local := config["rope_parameters"].get("sliding_attention"):
        writer.add_rope_freq_base_swa(local["rope_theta"])
    _write_scaling(writer, kind, rope, config)


def rotated_size(config: Config) -> int:
    """How many of a head's dimensions are rotated."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(size * rope_of(config).get("partial_rotary_factor", 1.0))


def _write_scaling(writer: GGUFWriter, kind: str, rope: Rope, config: Config) -> None:
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        _write_yarn(writer, rope, config)
    elif kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_attn_factors(_longrope_attention(rope, config))


def _write_yarn(writer: GGUFWriter, rope: Rope, config: Config) -> None:
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(original)
    own_scale = [name for name in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(name)]
    if own_scale or rope.get("truncate") is False:
        raise IncompatibleModel(
            f"YaRN with {own_scale[0] if own_scale else 'truncate: false'} has no converter to GGUF; choose a "
            f"safetensors method such as bitsandbytes",
            param="model",
        )
    if rope.get("beta_fast"):
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    if rope.get("beta_slow"):
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def _longrope_attention(rope: Rope, config: Config) -> float:
    """What queries and keys are multiplied with for contexts longer than the original one."""
    if rope.get("attention_factor"):
        return float(rope["attention_factor"])
    original = config["original_max_position_embeddings"]
    factor = rope.get("factor") or config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def rope_tensors(config: Config) -> dict[str, torch.Tensor]:
    """Divisors of the frequencies, one for each pair of rotated dimensions, by GGUF name."""
    rope = rope_of(config)
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": _llama3_divisors(rope, rotated_size(config))}
    if rope["rope_type"] == "longrope":
        return {
            "rope_factors_long.weight": torch.tensor(rope["long_factor"], dtype=torch.float32),
            "rope_factors_short.weight": torch.tensor(rope["short_factor"], dtype=torch.float32),
        }
    return {}


def _llama3_divisors(rope: Rope, size: int) -> torch.Tensor:
    """1 for short wavelengths, `factor` for long ones, and a linear passage of the frequency between them."""
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
    wavelengths = 2 * math.pi * rope["rope_theta"] ** exponents
    original, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return 1 / (kept + (1 - kept) / rope["factor"])
