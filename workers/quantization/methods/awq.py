"""AWQ by gptqmodel, in AutoAWQ's GEMM layout."""

from __future__ import annotations

from pathlib import Path

import torch
from gptqmodel import BACKEND
from gptqmodel.quantization.config import FORMAT, AWQConfig

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.awq import SPEC, AwqParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, Part, QuantizationMethod
from workers.quantization.packed import quantize_packed, report_packed


class AwqMethod(QuantizationMethod[AwqParams]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: AwqParams, run: JobRun) -> QuantizationReport:
        calibration = run.calibration(params.calibration, Part(run, 0.0, 0.1).report)
        config = AWQConfig(
            bits=params.bits, group_size=params.group_size, sym=not params.zero_point, format=FORMAT.GEMM
        )
        # By itself the library asks for a GPU's kernels even where there is none.
        backend = BACKEND.AUTO if torch.cuda.is_available() else BACKEND.AWQ_TORCH
        quantize_packed(source, target, config, calibration, Part(run, 0.1, 1.0), backend=backend)
        return report_packed(source, target, lambda module: "INT4", calibration)
