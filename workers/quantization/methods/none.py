"""Casts every floating-point tensor, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from app.domain.artifacts import QuantizationReport
from app.domain.errors import IncompatibleModel
from app.domain.quantization.methods.none import SPEC, NoneParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.streaming import Conversion, Stored, dtype_entry, kept, stream

DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NoneMethod(QuantizationMethod[NoneParams]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: NoneParams, run: JobRun) -> QuantizationReport:
        dtype = DTYPES[params.dtype]

        def convert(name: str, tensor: torch.Tensor) -> Stored:
            return kept(name, cast(name, tensor, dtype), dtype)

        return stream(source, target, Conversion("casting", convert, lambda name: [name]), dtype_entry(dtype), run)


def cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Casts a floating-point tensor of any shape; leaves others alone.

    Raises IncompatibleModel when a finite value would become infinite.
    """
    if not tensor.is_floating_point():
        return tensor
    largest = torch.finfo(dtype).max
    if dtype != tensor.dtype and torch.finfo(tensor.dtype).max > largest:
        peak = tensor.abs().masked_fill(~tensor.isfinite(), 0).max().item() if tensor.numel() else 0.0
        if peak > largest:
            raise IncompatibleModel(
                f"{name} holds {peak:g}, beyond the range of ±{largest:g} of {dtype}; choose bf16 or fp32",
                param="method.dtype",
            )
    return tensor.to(dtype)
