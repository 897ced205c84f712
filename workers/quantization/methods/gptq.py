"""GPTQ by gptqmodel, with checkpoints between layers where the library can go on from one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from gptqmodel.quantization.config import GPTQConfig

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.gptq import SPEC, GptqParams, ModuleOverride
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, Part, QuantizationMethod
from workers.quantization.packed import quantize_packed, report_packed

# The families whose state the library's checkpoints can restore.
RESUMABLE_TYPES: Final = ("llama", "qwen3_moe")


class GptqMethod(QuantizationMethod[GptqParams]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: GptqParams, run: JobRun) -> QuantizationReport:
        calibration = run.calibration(params.calibration, Part(run, 0.0, 0.1).report)
        work = Part(run, 0.1, 1.0)
        quantize_packed(
            source, target, _config(source, params), calibration, work, resumable=_resumable(source, params)
        )
        return report_packed(source, target, lambda module: f"INT{_bits_of(module, params)}", calibration)


def _config(source: Checkpoint, params: GptqParams) -> GPTQConfig:
    has_head = "lm_head.weight" in source.tensors  # a tied one is stored as the embeddings
    return GPTQConfig(
        bits=params.bits,
        group_size=params.group_size,
        sym=params.symmetric,
        desc_act=params.activation_order,
        # Groups are ordered by their inputs unless the library is told not to, and of whole rows it refuses that.
        act_group_aware=_orders_groups(params, params.group_size),
        damp_percent=params.damping,
        lm_head=params.lm_head and has_head,
        dynamic=dict(_dynamic(pattern, override, params) for pattern, override in params.overrides.items()) or None,
    )


def _orders_groups(params: GptqParams, group_size: int) -> bool:
    return group_size != -1 and not params.activation_order


def _dynamic(pattern: str, override: ModuleOverride, params: GptqParams) -> tuple[str, dict[str, Any]]:
    """In the library's words: '-:' before a pattern excludes, '+:' overrides; patterns match from the start."""
    if override.skip:
        return f"-:.*(?:{pattern})", {}
    values = {"bits": override.bits, "group_size": override.group_size, "sym": override.symmetric}
    if override.group_size is not None:
        values["act_group_aware"] = _orders_groups(params, override.group_size)
    return f"+:.*(?:{pattern})", {name: value for name, value in values.items() if value is not None}


def _bits_of(module: str, params: GptqParams) -> int:
    for pattern, override in params.overrides.items():
        if override.bits is not None and re.search(pattern, module):
            return override.bits
    return params.bits


def _resumable(source: Checkpoint, params: GptqParams) -> bool:
    known = source.config.get("model_type") in RESUMABLE_TYPES
    return known and not params.overrides and not params.lm_head
