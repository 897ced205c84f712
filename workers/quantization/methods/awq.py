"""AWQ by gptqmodel, in AutoAWQ's GEMM layout."""

from __future__ import annotations

from pathlib import Path

import torch
from gptqmodel import BACKEND
from gptqmodel.looper.awq_processor import AWQProcessor
from gptqmodel.quantization.config import FORMAT, AWQConfig

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.awq import SPEC, AwqParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.algorithms.clipping import best_bounds, second_moments
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
        # The library multiplies every weight with every token, element by element: two thirds of its time on a CPU.
        AWQProcessor._compute_best_clip = compute_best_clip
        quantize_packed(source, target, config, calibration, Part(run, 0.1, 1.0), backend=backend)
        return report_packed(source, target, lambda module: "INT4", calibration)


@torch.inference_mode()
def compute_best_clip(
    self: AWQProcessor,
    w: torch.Tensor,
    input_feat: torch.Tensor,
    n_grid: int = 20,
    max_shrink: float = 0.5,
    n_sample_token: int = 0,
) -> torch.Tensor:
    """Stands in for the library's function of this name, with its arguments; every token counts, not 512 of them."""
    group_size = self.qcfg.group_size if self.qcfg.group_size > 0 else w.shape[1]

    def round_groups(groups: torch.Tensor) -> torch.Tensor:
        self._pseudo_quantize_tensor_into(groups, groups)
        return groups

    moments = second_moments(input_feat.reshape(-1, input_feat.shape[-1]), group_size, w.device)
    steps = int(max_shrink * n_grid)
    return best_bounds(w, moments, round_groups, steps=steps, least=1 - steps / n_grid)
