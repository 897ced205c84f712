"""FP8: eight-bit floating point, in the two formats of arXiv:2209.05433."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.modules import SkipModules
from app.domain.quantization.spec import MethodParams, MethodSpec


class Fp8Params(MethodParams):
    format: Literal["e4m3", "e5m2"] = Field(
        default="e4m3", description="Bits of exponent and mantissa: e4m3 is more precise, e5m2 reaches further."
    )
    activations: Literal["dynamic", "none"] = Field(
        default="dynamic",
        description="dynamic also rounds each token's activations (W8A8), which FP8 tensor cores multiply; none "
        "quantizes weights only.",
    )
    granularity: Literal["channel", "block"] = Field(
        default="channel", description="One scale per output channel, or per block of 128 × 128 weights."
    )
    skip_modules: SkipModules = ()

    @model_validator(mode="after")
    def _e5m2_is_for_weights(self) -> Fp8Params:
        if self.format == "e5m2" and (self.activations, self.granularity) != ("none", "channel"):
            raise ValueError("e5m2 quantizes weights only, per channel: give activations 'none' with it")
        if self.granularity == "block" and self.activations == "none":
            raise ValueError("blocks go with dynamic activations; choose granularity 'channel' for weights only")
        return self


def _label(params: Fp8Params) -> str:
    if params.format == "e5m2":
        return "fp8-e5m2"
    return "fp8" + ("-w8a16" if params.activations == "none" else "-block" if params.granularity == "block" else "")


SPEC = MethodSpec(
    name="fp8",
    summary="FP8 weights, E4M3 with dynamic activations or E4M3 and E5M2 weight-only",
    params=Fp8Params,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=_label,
    bits=lambda params: 8.1,
    packages=("compressed-tensors", "torchao", "torch", "transformers"),
    group_size=lambda params: 128 if params.granularity == "block" else None,
    streams=True,
)
