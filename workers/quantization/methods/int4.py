"""INT4 W4A16 in the compressed-tensors format, eight weights to a word (`pack-quantized`)."""

from __future__ import annotations

from pathlib import Path

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.int4 import SPEC, Int4Params
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.calibrated import Rounding
from workers.quantization.compressed import integer_scheme
from workers.quantization.integers import quantize_integers


class Int4Method(QuantizationMethod[Int4Params]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: Int4Params, run: JobRun) -> QuantizationReport:
        scheme = integer_scheme(4, group_size=params.group_size, symmetric=params.symmetric)
        rounding = Rounding(
            algorithm=params.algorithm,
            damping=params.damping,
            largest_first=params.activation_order,
            clipped_groups=params.group_size if params.clipping and params.group_size != -1 else None,
        )
        calibration = params.calibration_wanted()
        return quantize_integers(source, target, scheme, rounding, params.skip_modules, calibration, run)
