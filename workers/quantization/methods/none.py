"""Casts every floating-point tensor, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.none import SPEC, NoneParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.casting import cast
from workers.quantization.streaming import Conversion, Stored, dtype_entry, kept, stream

DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NoneMethod(QuantizationMethod[NoneParams]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: NoneParams, run: JobRun) -> QuantizationReport:
        dtype = DTYPES[params.dtype]

        def convert(name: str, tensor: torch.Tensor) -> Stored:
            return kept(name, cast(name, tensor, dtype, remedy="choose bf16 or fp32", param="method.dtype"), dtype)

        return stream(source, target, Conversion("casting", convert, lambda name: [name]), dtype_entry(dtype), run)
