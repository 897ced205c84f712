"""Casts to narrower types, which say what they cannot hold instead of making infinities of it."""

from __future__ import annotations

import torch

from app.domain.errors import IncompatibleModel

# What most methods can be told instead; `none` has a parameter for it.
REMEDY = "choose a method or a type with a larger range, such as bf16"


def cast(
    name: str, tensor: torch.Tensor, dtype: torch.dtype, *, remedy: str = REMEDY, param: str = "method"
) -> torch.Tensor:
    """Casts a floating-point tensor of any shape; leaves others alone.

    Raises IncompatibleModel when a finite value would become infinite.
    """
    if not tensor.is_floating_point():
        return tensor
    result = tensor.to(dtype)
    # Looking at the result first is quick, and nearly always all that is needed; wider types hold everything.
    if torch.finfo(dtype).max >= torch.finfo(tensor.dtype).max or result.isfinite().all():
        return result
    lost = tensor.isfinite() & ~result.isfinite()
    if lost.any():
        raise IncompatibleModel(
            f"{name} holds {tensor[lost].abs().max().item():g}, beyond the range of ±{torch.finfo(dtype).max:g} of "
            f"{dtype}; {remedy}",
            param=param,
        )
    return result


def require_finite(name: str, stored: torch.Tensor) -> torch.Tensor:
    """What is stored of a weight, such as its scales. Raises IncompatibleModel where that is not finite."""
    if stored.is_floating_point() and not stored.isfinite().all():
        raise IncompatibleModel(
            f"{name} is too large for {stored.dtype}, or holds what is no number; {REMEDY}", param="method"
        )
    return stored
