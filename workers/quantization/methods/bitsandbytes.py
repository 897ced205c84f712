"""Writes bitsandbytes checkpoints tensor by tensor, in the layout of transformers' save_pretrained."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from bitsandbytes import functional
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from app.domain.artifacts import QuantizationReport
from app.domain.errors import IncompatibleModel, UnsupportedArchitecture
from app.domain.quantization.methods.bitsandbytes import SPEC, BitsAndBytesParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.checkpoints.reader import DTYPE_NAMES, copy_companions, read_tensors
from workers.quantization.checkpoints.writer import CheckpointWriter, header_bound

DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BLOCK_SIZE: Final = 64  # bitsandbytes' own default, which its loader assumes
# What a quantized weight becomes: itself and up to five tensors beside it.
SUFFIXES: Final = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB")
STATE_SUFFIX: Final = ".quant_state.bitsandbytes__nf4"

Named = Iterator[tuple[str, torch.Tensor]]


class BitsAndBytesMethod(QuantizationMethod[BitsAndBytesParams]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: BitsAndBytesParams, run: JobRun) -> QuantizationReport:
        linears = linear_weights(source)
        types: Counter[str] = Counter()
        with CheckpointWriter(
            target, max_shard_bytes=run.max_shard_bytes, header_bytes=_header_bytes(source)
        ) as writer:
            for name, tensor, fraction in read_tensors(source):
                run.report(fraction, f"quantizing to {params.quantization}")
                chosen = name in linears
                for part, value in _quantized(name, tensor, params) if chosen else _kept(name, tensor, params):
                    writer.write(part, value)
                types[params.quantization.upper() if chosen else DTYPE_NAMES[value.dtype]] += 1
        _write_config(source, target, params)
        copy_companions(source.path, target)
        return QuantizationReport(
            tensor_types=dict(types), parameter_count=source.parameter_count, weight_bytes=writer.total_bytes
        )


def linear_weights(source: Checkpoint) -> frozenset[str]:
    """Names of the weights that bitsandbytes replaces: those of Linear layers, but not of the output head.

    The model is built without memory, on torch's meta device. Raises UnsupportedArchitecture.
    """
    from transformers.quantizers.base import get_keys_to_not_convert

    try:
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise UnsupportedArchitecture(
            f"transformers cannot build a {source.architecture}: {error}", param="model"
        ) from error
    skipped = set(get_keys_to_not_convert(model))
    return frozenset(
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not _is_below(name, skipped)
    )


def _is_below(name: str, skipped: set[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in skipped)


def _quantized(name: str, weight: torch.Tensor, params: BitsAndBytesParams) -> Named:
    """The tensors that a Linear's weight of shape (out, in) becomes."""
    if params.quantization == "int8":
        yield from _int8(name, weight)
    else:
        yield from _four_bits(name, weight, params)


def _int8(name: str, weight: torch.Tensor) -> Named:
    """LLM.int8(): int8 rows (out, in), a float32 scale per row (out,), and the layout's number (0: row)."""
    rows, scales, _ = functional.int8_vectorwise_quant(weight.half())
    yield name, rows
    yield name.removesuffix("weight") + "SCB", scales
    yield name.removesuffix("weight") + "weight_format", torch.tensor(0, dtype=torch.uint8)


def _four_bits(name: str, weight: torch.Tensor, params: BitsAndBytesParams) -> Named:
    """Packed nibbles (out·in/2, 1), the blocks' scales, and the state that dequantization needs."""
    if weight.numel() % BLOCK_SIZE:
        raise IncompatibleModel(
            f"{name} has {weight.numel()} values, which blocks of {BLOCK_SIZE} do not divide; "
            f"choose int8 for this model",
            param="method.quantization",
        )
    packed, state = functional.quantize_4bit(
        weight.to(DTYPES[params.compute_dtype]),
        blocksize=BLOCK_SIZE,
        quant_type=params.quantization,
        compress_statistics=params.double_quant,
    )
    yield name, packed
    for key, value in state.as_dict(packed=True).items():
        yield f"{name}.{key}", value


def _kept(name: str, tensor: torch.Tensor, params: BitsAndBytesParams) -> Named:
    yield name, tensor.to(DTYPES[params.compute_dtype]) if tensor.is_floating_point() else tensor


def _header_bytes(source: Checkpoint) -> int:
    names = [name + suffix for name in source.tensors for suffix in (*SUFFIXES, STATE_SUFFIX)]
    return header_bound(names)


def _write_config(source: Checkpoint, target: Path, params: BitsAndBytesParams) -> None:
    config: dict[str, Any] = {
        **source.config,
        "dtype": str(DTYPES[params.compute_dtype]).removeprefix("torch."),
        "quantization_config": quantization_config(params).to_dict(),
    }
    config.pop("torch_dtype", None)  # the same entry's older name
    (target / "config.json").write_text(json.dumps(config, indent=2))


def quantization_config(params: BitsAndBytesParams) -> BitsAndBytesConfig:
    """The same choice in transformers' words."""
    if params.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=params.quantization,
        bnb_4bit_use_double_quant=params.double_quant,
        bnb_4bit_compute_dtype=DTYPES[params.compute_dtype],
    )
