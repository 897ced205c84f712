"""FP4: four-bit floating point (E2M1) with shared scales, weights only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.modules import SkipModules
from app.domain.quantization.spec import MethodParams, MethodSpec

BITS = {"nvfp4": 4.5, "mxfp4": 4.25}


class Fp4Params(MethodParams):
    format: Literal["nvfp4", "mxfp4"] = Field(
        default="nvfp4",
        description="nvfp4: groups of 16 with FP8 scales and one global scale. mxfp4: groups of 32 with power-of-two "
        "scales (OCP Microscaling Formats 1.0).",
    )
    skip_modules: SkipModules = ()


SPEC = MethodSpec(
    name="fp4",
    summary="NVFP4 and MXFP4 weights",
    params=Fp4Params,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=lambda params: params.format,
    bits=lambda params: BITS[params.format],
    packages=("compressed-tensors", "torch", "transformers"),
    group_size=lambda params: {"nvfp4": 16, "mxfp4": 32}[params.format],
    streams=True,
)
