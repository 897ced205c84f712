"""AWQ: channels that carry large activations are scaled up before rounding (arXiv:2306.00978)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.calibration import CalibrationParams
from app.domain.quantization.spec import MethodParams, MethodSpec


class AwqParams(MethodParams):
    bits: Literal[4] = Field(default=4, description="Bits of a weight; the format has no others.")
    group_size: Literal[16, 32, 64, 128] = Field(
        default=128, description="Weights of a row that share a scale. It must divide every row."
    )
    zero_point: bool = Field(default=True, description="Each group has a zero point of its own.")
    calibration: CalibrationParams = Field(
        default=CalibrationParams(), description="The text whose activations choose the scales."
    )

    def calibration_wanted(self) -> CalibrationParams:
        return self.calibration


SPEC = MethodSpec(
    name="awq",
    summary="AWQ with 4 bits, in AutoAWQ's GEMM layout",
    params=AwqParams,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=lambda params: f"awq-4bit-g{params.group_size}" + ("" if params.zero_point else "-sym"),
    bits=lambda params: 4 + 20 / params.group_size,
    packages=("gptqmodel", "torch", "transformers"),
    revision=2,
    group_size=lambda params: params.group_size,
    needs_calibration=True,
)
