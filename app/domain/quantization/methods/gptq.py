"""GPTQ: weights rounded one column at a time, each error spread over the columns to come (arXiv:2210.17323)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.calibration import CalibrationParams
from app.domain.quantization.spec import MethodParams, MethodSpec

Bits = Literal[2, 3, 4, 8]
GroupSize = Literal[-1, 16, 32, 64, 128, 256, 512, 1024]


class ModuleOverride(BaseModel, extra="forbid", frozen=True):
    """What differs for the modules that a pattern matches; `skip` leaves them unquantized."""

    bits: Bits | None = None
    group_size: GroupSize | None = None
    symmetric: bool | None = None
    skip: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> ModuleOverride:
        values = (self.bits, self.group_size, self.symmetric)
        if self.skip == any(value is not None for value in values):
            raise ValueError("give either skip=true or at least one of bits, group_size and symmetric")
        return self


class GptqParams(MethodParams):
    bits: Bits = Field(default=4, description="Bits of a weight.")
    group_size: GroupSize = Field(
        default=128, description="Weights of a row that share a scale; -1 for whole rows. It must divide every row."
    )
    symmetric: bool = Field(default=True, description="Without it each group has a zero point of its own.")
    activation_order: bool = Field(
        default=False, description="Round the columns with the largest inputs first: more precise, slower to run."
    )
    damping: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="Share of the mean that is added to the Hessian's diagonal."
    )
    lm_head: bool = Field(default=False, description="Quantize the output head too, unless it is tied.")
    overrides: dict[str, ModuleOverride] = Field(
        default_factory=dict,
        description="Regular expressions over module names, each with the bits, group_size or symmetric that differ, "
        "or skip.",
    )
    calibration: CalibrationParams = Field(
        default=CalibrationParams(), description="The text whose activations the rounding fits."
    )

    @model_validator(mode="after")
    def _patterns_are_regular_expressions(self) -> GptqParams:
        for pattern in self.overrides:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"overrides has {pattern!r}, which is no regular expression: {error}") from error
        return self

    def calibration_wanted(self) -> CalibrationParams:
        return self.calibration


def _label(params: GptqParams) -> str:
    group = "row" if params.group_size == -1 else f"g{params.group_size}"
    return f"gptq-{params.bits}bit-{group}"


def _bits(params: GptqParams) -> float:
    # A 16-bit scale and a packed zero point per group.
    return params.bits if params.group_size == -1 else params.bits + (16 + params.bits) / params.group_size


SPEC = MethodSpec(
    name="gptq",
    summary="GPTQ with 2, 3, 4 or 8 bits",
    params=GptqParams,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=_label,
    bits=_bits,
    packages=("gptqmodel", "torch", "transformers"),
    group_size=lambda params: None if params.group_size == -1 or params.overrides else params.group_size,
    needs_calibration=True,
)
