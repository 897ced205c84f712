"""No quantization: a cast of every floating-point tensor to one type."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.spec import MethodParams, MethodSpec

BITS = {"fp32": 32.0, "fp16": 16.0, "bf16": 16.0}


class NoneParams(MethodParams):
    dtype: Literal["fp32", "fp16", "bf16"] = Field(
        default="bf16",
        description="Target type. fp16 is refused when a weight exceeds its range of ±65504.",
    )


SPEC = MethodSpec(
    name="none",
    summary="Cast to FP32, FP16 or BF16",
    params=NoneParams,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=lambda params: params.dtype,
    bits=lambda params: BITS[params.dtype],
    packages=("torch", "safetensors"),
    streams=True,
)
