"""Streams NVFP4 and MXFP4 weights in the compressed-tensors format."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.fp4 import SPEC, Fp4Params
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.compressed import scheme, stream_compressed
from workers.quantization.linears import find_linears

PRESETS: Final = {"nvfp4": "NVFP4A16", "mxfp4": "MXFP4A16"}


class Fp4Method(QuantizationMethod[Fp4Params]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: Fp4Params, run: JobRun) -> QuantizationReport:
        linears = find_linears(source, params.skip_modules)
        chosen = scheme(PRESETS[params.format])
        # The library unpacks to this type alone: other tensors of float16 would not fit to what comes out of a layer.
        dtype = torch.bfloat16
        return stream_compressed(source, target, linears, chosen, params.format.upper(), run, dtype=dtype)
