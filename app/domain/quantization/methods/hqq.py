"""HQQ: grids found by half-quadratic splitting, without any data (https://mobiusml.github.io/hqq_blog/)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.modules import SkipModules
from app.domain.quantization.spec import MethodParams, MethodSpec


class HqqParams(MethodParams):
    bits: Literal[2, 3, 4, 8] = Field(default=4, description="Bits of a weight.")
    group_size: Literal[16, 32, 64, 128, 256] = Field(
        default=64, description="Weights of a row that share a scale and a zero point. It must divide every row."
    )
    skip_modules: SkipModules = ()


SPEC = MethodSpec(
    name="hqq",
    summary="HQQ with 2, 3, 4 or 8 bits, without calibration, in GPTQ's layout",
    params=HqqParams,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=lambda params: f"hqq-{params.bits}bit-g{params.group_size}",
    # A 16-bit scale and a packed zero point per group.
    bits=lambda params: params.bits + (16 + params.bits) / params.group_size,
    packages=("hqq", "gptqmodel", "torch", "transformers"),
    group_size=lambda params: params.group_size,
    streams=True,
)
