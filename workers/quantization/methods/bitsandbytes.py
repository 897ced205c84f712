"""Writes bitsandbytes checkpoints tensor by tensor, in the layout of transformers' save_pretrained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from bitsandbytes import functional
from transformers import BitsAndBytesConfig

from app.domain.artifacts import QuantizationReport
from app.domain.errors import IncompatibleModel
from app.domain.quantization.methods.bitsandbytes import SPEC, BitsAndBytesParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.casting import cast
from workers.quantization.linears import find_linears
from workers.quantization.streaming import Conversion, Stored, dtype_entry, kept, stream

DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# What a quantized weight becomes: itself and the tensors beside it.
SUFFIXES: Final = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
STATE_SUFFIX: Final = ".quant_state.bitsandbytes__"
INT8_REMEDY: Final = "choose nf4 or fp4, whose compute_dtype may be bf16, or the method fp8"
INT8_PARTS: Final = ("SCB", "weight_format")

Named = Iterator[tuple[str, torch.Tensor]]


class BitsAndBytesMethod(QuantizationMethod[BitsAndBytesParams]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: BitsAndBytesParams, run: JobRun) -> QuantizationReport:
        linears = find_linears(source, params.skip_modules)
        dtype = DTYPES[params.compute_dtype]

        def convert(name: str, tensor: torch.Tensor) -> Stored:
            if linears.module_of(name) is None:
                return kept(name, cast(name, tensor, dtype, remedy="choose bf16", param="method.compute_dtype"), dtype)
            return Stored(params.quantization.upper(), _quantized(name, tensor, params))

        conversion = Conversion(f"quantizing to {params.quantization}", convert, _part_names)
        # Without modules of the user's own, the file says nothing of them, as save_pretrained's does.
        skipped = linears.skipped if params.skip_modules else None
        entry = quantization_config(params, skipped).to_dict()
        return stream(source, target, conversion, {**dtype_entry(dtype), "quantization_config": entry}, run)


def _quantized(name: str, weight: torch.Tensor, params: BitsAndBytesParams) -> Named:
    """The tensors that a Linear's weight of shape (out, in) becomes."""
    if params.quantization == "int8":
        yield from _int8(name, weight)
    else:
        yield from _four_bits(name, weight, params)


def _int8(name: str, weight: torch.Tensor) -> Named:
    """LLM.int8(): int8 rows (out, in), a float32 scale per row (out,), and the layout's number (0: row).

    The library rounds, and multiplies, in float16. Raises IncompatibleModel for weights beyond its range.
    """
    rows, scales, _ = functional.int8_vectorwise_quant(cast(name, weight, torch.float16, remedy=INT8_REMEDY))
    yield name, rows
    yield name.removesuffix("weight") + "SCB", scales
    yield name.removesuffix("weight") + "weight_format", torch.tensor(0, dtype=torch.uint8)


def _four_bits(name: str, weight: torch.Tensor, params: BitsAndBytesParams) -> Named:
    """Packed nibbles (out·in/2, 1), the blocks' scales, and the state that dequantization needs."""
    if weight.numel() % params.blocksize:
        raise IncompatibleModel(
            f"{name} has {weight.numel()} values, which blocks of {params.blocksize} do not divide; choose a "
            f"smaller blocksize, or int8",
            param="method.blocksize",
        )
    packed, state = functional.quantize_4bit(
        cast(name, weight, DTYPES[params.compute_dtype], remedy="choose bf16", param="method.compute_dtype"),
        blocksize=params.blocksize,
        quant_type=params.quantization,
        compress_statistics=params.double_quant,
    )
    yield name, packed
    for key, value in state.as_dict(packed=True).items():
        yield f"{name}.{key}", value


def _part_names(name: str) -> list[str]:
    parts = (*SUFFIXES, *(STATE_SUFFIX + kind for kind in ("nf4", "fp4")))
    return [*(name + suffix for suffix in parts), *(name.removesuffix("weight") + part for part in INT8_PARTS)]


def quantization_config(params: BitsAndBytesParams, skipped: list[str] | None = None) -> BitsAndBytesConfig:
    """The same choice in transformers' words."""
    if params.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=params.threshold, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type=params.quantization,
        bnb_4bit_use_double_quant=params.double_quant,
        bnb_4bit_compute_dtype=DTYPES[params.compute_dtype],
    )
