"""INT8 W8A8 in the compressed-tensors format."""

from __future__ import annotations

from pathlib import Path

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.int8 import SPEC, Int8Params
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.calibrated import Rounding
from workers.quantization.compressed import scheme
from workers.quantization.integers import quantize_integers


class Int8Method(QuantizationMethod[Int8Params]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: Int8Params, run: JobRun) -> QuantizationReport:
        rounding = Rounding(algorithm=params.algorithm, damping=params.damping, smoothing=params.smoothing)
        calibration = params.calibration_wanted()
        return quantize_integers(source, target, scheme("W8A8"), rounding, params.skip_modules, calibration, run)
