"""Rotary embeddings of GGUF files that are not plain: transformers' loader passes over what says so."""

from __future__ import annotations

import math
from typing import Any, Final, NoReturn

import numpy as np

from app.domain.errors import IncompatibleModel
from workers.sources.gguf_metadata import GgufMetadata

Factors = np.ndarray[Any, np.dtype[np.float64]]

FACTORS_PREFIX: Final = ("rope_freqs", "rope_factors")
DEFAULT_BASE: Final = 10000.0
# Every Llama 3 with scaled rotary embeddings was made with these; only the factor differs.
LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# The loader reads the scaling of these itself.
READ_BY_LOADER: Final = ("gpt-oss",)


def rope_parameters(metadata: GgufMetadata) -> dict[str, Any] | None:
    """The `rope_parameters` of a scaled model's configuration; None for a plain one.

    GGUF has one divisor per frequency instead of Llama 3's parameters, which are recognized from it. Raises
    IncompatibleModel for a scaling that cannot be.
    """
    architecture = metadata.architecture
    kind = metadata.value(f"{architecture}.rope.scaling.type")
    if kind not in (None, "none") and architecture not in READ_BY_LOADER:
        _refuse(f"rotary scaling of type {kind!r}")
    tensors = [tensor for tensor in metadata.reader.tensors if tensor.name.startswith(FACTORS_PREFIX)]
    if not tensors:
        return None
    base = metadata.value(f"{architecture}.rope.freq_base") or DEFAULT_BASE
    return llama3_parameters(np.asarray(tensors[0].data, dtype=np.float64), base)


def llama3_parameters(factors: Factors, base: float) -> dict[str, Any]:
    """Llama 3's parameters from the divisors, shape (head size / 2). Raises IncompatibleModel."""
    factor = round(float(factors.max()), 3)
    if not np.allclose(factors, llama3_factors(len(factors), base, factor), rtol=1e-4):
        _refuse("rotary frequency factors that are not Llama 3's")
    return {"rope_type": "llama3", "rope_theta": base, "factor": factor, **LLAMA3}


def llama3_factors(count: int, base: float, factor: float) -> Factors:
    """What Llama 3 divides each of `count` rotary frequencies by: 1 for short waves, `factor` for long ones."""
    wavelengths = 2 * math.pi * base ** (np.arange(count) / count)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    smooth = (LLAMA3["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    share = np.clip(smooth, 0.0, 1.0)
    return 1 / ((1 - share) / factor + share)


def _refuse(what: str) -> NoReturn:
    raise IncompatibleModel(f"the GGUF file has {what}, which cannot be unpacked; give the original", param="model")
