"""AutoRound: rounding and clipping tuned by signed gradients, block by block (arXiv:2309.05516)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.calibration import CalibrationParams
from app.domain.quantization.spec import MethodParams, MethodSpec


class AutoRoundParams(MethodParams):
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="Bits of a weight.")
    group_size: Literal[16, 32, 64, 128, 256] = Field(
        default=128, description="Weights of a row that share a scale. It must divide every row."
    )
    symmetric: bool = Field(default=True, description="Without it each group has a zero point of its own.")
    iterations: int = Field(
        default=200, ge=1, le=1000, description="Steps of tuning per block; a CPU wants fewer than a GPU."
    )
    layout: Literal["gptq", "awq"] = Field(
        default="gptq", description="How the weights are packed: as GPTQ's, or as AutoAWQ's (4 bits)."
    )
    calibration: CalibrationParams = Field(
        default=CalibrationParams(),
        description="The text on which each block's output is kept close to the original's.",
    )

    @model_validator(mode="after")
    def _layout_has_the_grid(self) -> AutoRoundParams:
        if self.layout == "awq" and (self.bits != 4 or self.symmetric):
            raise ValueError("layout 'awq' holds 4 bits with zero points only: give bits 4 and symmetric false with it")
        if self.bits == 8 and not self.symmetric:
            raise ValueError("8 bits are symmetric only; leave symmetric out, or choose fewer bits")
        return self

    def calibration_wanted(self) -> CalibrationParams:
        return self.calibration


def _label(params: AutoRoundParams) -> str:
    kind = "" if params.symmetric else "-asym"
    return f"autoround-{params.bits}bit-g{params.group_size}{kind}" + ("-awq" if params.layout == "awq" else "")


SPEC = MethodSpec(
    name="autoround",
    summary="AutoRound with 2, 3, 4 or 8 bits, in GPTQ's or AWQ's layout",
    params=AutoRoundParams,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=_label,
    # A 16-bit scale and a packed zero point per group.
    bits=lambda params: params.bits + (16 + params.bits) / params.group_size,
    packages=("auto-round", "gptqmodel", "torch", "transformers"),
    group_size=lambda params: params.group_size,
    needs_calibration=True,
)
