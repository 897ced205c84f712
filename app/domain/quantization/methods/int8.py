"""INT8 W8A8: integer weights and activations, which processors and GPUs multiply fastest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.calibration import CalibrationParams
from app.domain.quantization.modules import SkipModules
from app.domain.quantization.spec import MethodParams, MethodSpec


class Int8Params(MethodParams):
    algorithm: Literal["rtn", "gptq"] = Field(
        default="rtn",
        description="rtn rounds each weight to the nearest step and needs no data; gptq spreads each column's error "
        "over the others.",
    )
    smoothing: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="SmoothQuant's strength: how much of the activations' outliers moves into the weights. 0 is off, "
        "0.5 to 0.8 is usual.",
    )
    damping: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.01, description="Share of the mean that is added to the Hessian's diagonal (gptq)."
    )
    skip_modules: SkipModules = ()
    calibration: CalibrationParams = Field(
        default=CalibrationParams(), description="The text that gptq and smoothing look at."
    )

    @property
    def is_calibrated(self) -> bool:
        return self.algorithm == "gptq" or self.smoothing > 0

    def calibration_wanted(self) -> CalibrationParams | None:
        return self.calibration if self.is_calibrated else None


def _label(params: Int8Params) -> str:
    smooth = "-smooth" if params.smoothing else ""
    return "int8-w8a8" + smooth + ("-gptq" if params.algorithm == "gptq" else "")


SPEC = MethodSpec(
    name="int8",
    summary="INT8 weights per channel, activations per token (W8A8)",
    params=Int8Params,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=_label,
    bits=lambda params: 8.1,
    packages=("compressed-tensors", "torch", "transformers"),
    revision=2,
    streams=True,
)
