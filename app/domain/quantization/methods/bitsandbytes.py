"""bitsandbytes: LLM.int8() and the 4-bit types of QLoRA."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.modules import SkipModules
from app.domain.quantization.spec import MethodParams, MethodSpec


class BitsAndBytesParams(MethodParams):
    """LLM.int8() is arXiv:2208.07339; NF4 and double quantization are arXiv:2305.14314."""

    quantization: Literal["int8", "nf4", "fp4"] = Field(
        default="nf4", description="int8 per row with outlier columns in 16 bits, or a 4-bit type per block."
    )
    double_quant: bool = Field(
        default=False,
        description="Quantize the blocks' scales too (4-bit types): about 0.4 bits per weight less.",
    )
    compute_dtype: Literal["bf16", "fp16", "fp32"] = Field(
        default="bf16", description="Type in which 4-bit layers multiply when the model runs."
    )

    blocksize: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        default=64, description="Weights that share one scale (4-bit types)."
    )
    threshold: float = Field(
        default=6.0, ge=0, description="Input columns that reach beyond it multiply in 16 bits (int8)."
    )
    skip_modules: SkipModules = ()

    @model_validator(mode="after")
    def _parameters_fit_the_type(self) -> BitsAndBytesParams:
        if self.quantization == "int8":
            if self.double_quant or self.blocksize != 64:
                raise ValueError("double_quant and blocksize apply to nf4 and fp4 only; leave them out for int8")
        elif self.threshold != 6.0:
            raise ValueError("threshold applies to int8 only; leave it out for nf4 and fp4")
        return self


def _label(params: BitsAndBytesParams) -> str:
    return f"bnb-{params.quantization}" + ("-dq" if params.double_quant else "")


def _bits(params: BitsAndBytesParams) -> float:
    if params.quantization == "int8":
        return 8.1
    # A float32 scale per block; double quantization leaves eight bits of it.
    return 4 + (8.5 if params.double_quant else 32) / params.blocksize


SPEC = MethodSpec(
    name="bitsandbytes",
    summary="LLM.int8(), NF4 and FP4, with or without double quantization",
    params=BitsAndBytesParams,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=_label,
    bits=_bits,
    packages=("bitsandbytes", "torch", "transformers"),
    streams=True,
)
