"""INT4 W4A16: integer weights in groups, eight to a word, and 16-bit activations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.calibration import CalibrationParams
from app.domain.quantization.modules import SkipModules
from app.domain.quantization.spec import MethodParams, MethodSpec


class Int4Params(MethodParams):
    algorithm: Literal["rtn", "gptq"] = Field(
        default="rtn",
        description="rtn rounds each weight to the nearest step and needs no data; gptq spreads each column's error "
        "over the others.",
    )
    group_size: Literal[-1, 16, 32, 64, 128, 256] = Field(
        default=128, description="Weights of a row that share a scale; -1 for whole rows. It must divide every row."
    )
    symmetric: bool = Field(default=True, description="Without it each group has a zero point of its own.")
    activation_order: bool = Field(
        default=True,
        description="Round the columns with the largest inputs first (gptq). Groups stay as they are, so that it costs "
        "nothing to run.",
    )
    clipping: bool = Field(
        default=True,
        description="Clip the weights of a group where that brings the outputs closer (gptq with groups).",
    )
    damping: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.01, description="Share of the mean that is added to the Hessian's diagonal (gptq)."
    )
    skip_modules: SkipModules = ()
    calibration: CalibrationParams = Field(default=CalibrationParams(), description="The text that gptq looks at.")

    def calibration_wanted(self) -> CalibrationParams | None:
        return self.calibration if self.algorithm == "gptq" else None


def _label(params: Int4Params) -> str:
    group = "row" if params.group_size == -1 else f"g{params.group_size}"
    asymmetric = "" if params.symmetric else "-asym"
    return f"int4-w4a16-{group}{asymmetric}" + ("-gptq" if params.algorithm == "gptq" else "")


def _bits(params: Int4Params) -> float:
    # A 16-bit scale per group, and a zero point of 4 bits.
    return 4.1 if params.group_size == -1 else 4 + (16 if params.symmetric else 20) / params.group_size


SPEC = MethodSpec(
    name="int4",
    summary="INT4 weights in groups (W4A16), packed as compressed-tensors does",
    params=Int4Params,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=_label,
    bits=_bits,
    packages=("compressed-tensors", "torch", "transformers"),
    group_size=lambda params: None if params.group_size == -1 else params.group_size,
    streams=True,
)
