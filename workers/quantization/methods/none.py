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
    result = tensor.to(dtype)
    # Looking at the result first is quick, and nearly always all that is needed.
    if not result.isfinite().all() and (lost := tensor.isfinite() & ~result.isfinite()).any():
        raise IncompatibleModel(
            f"{name} holds {tensor[lost].abs().max().item():g}, beyond the range of ±{torch.finfo(dtype).max:g} of "
            f"{dtype}; choose bf16 or fp32",
            param="method.dtype",
        )
    return result
