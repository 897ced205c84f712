"""Casts every floating-point tensor, one at a time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Final

import torch

from app.domain.artifacts import QuantizationReport
from app.domain.errors import IncompatibleModel
from app.domain.quantization.methods.none import SPEC, NoneParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.checkpoints.reader import DTYPE_NAMES, copy_companions, read_tensors
from workers.quantization.checkpoints.writer import CheckpointWriter, header_bound

DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NoneMethod(QuantizationMethod[NoneParams]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: NoneParams, run: JobRun) -> QuantizationReport:
        dtype = DTYPES[params.dtype]
        types: Counter[str] = Counter()
        bound = header_bound(list(source.tensors))
        with CheckpointWriter(target, max_shard_bytes=run.max_shard_bytes, header_bytes=bound) as writer:
            for name, tensor, fraction in read_tensors(source):
                run.report(fraction, "casting")
                cast_tensor = cast(name, tensor, dtype)
                writer.write(name, cast_tensor)
                types[DTYPE_NAMES[cast_tensor.dtype]] += 1
        config = {**source.config, "dtype": str(dtype).removeprefix("torch.")}
        config.pop("torch_dtype", None)  # the same entry's older name
        (target / "config.json").write_text(json.dumps(config, indent=2))
        copy_companions(source.path, target)
        return QuantizationReport(
            tensor_types=dict(types), parameter_count=source.parameter_count, weight_bytes=writer.total_bytes
        )


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
