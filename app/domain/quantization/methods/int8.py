"""INT8 W8A8: integer weights and activations, which processors and GPUs multiply fastest."""

from __future__ import annotations

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.modules import SkipModules
from app.domain.quantization.spec import MethodParams, MethodSpec


class Int8Params(MethodParams):
    skip_modules: SkipModules = ()


SPEC = MethodSpec(
    name="int8",
    summary="INT8 weights per channel, activations per token (W8A8)",
    params=Int8Params,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=lambda params: "int8-w8a8",
    bits=lambda params: 8.1,
    packages=("compressed-tensors", "torch", "transformers"),
    streams=True,
)
