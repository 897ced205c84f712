"""Streams INT8 weights, one scale per output channel, in the compressed-tensors format."""

from __future__ import annotations

from pathlib import Path

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.int8 import SPEC, Int8Params
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.compressed import scheme, stream_compressed
from workers.quantization.linears import find_linears


class Int8Method(QuantizationMethod[Int8Params]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: Int8Params, run: JobRun) -> QuantizationReport:
        return stream_compressed(source, target, find_linears(source, params.skip_modules), scheme("W8A8"), "I8", run)
