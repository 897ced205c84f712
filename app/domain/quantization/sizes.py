"""What a method makes of each tensor, in bytes, from names, types and shapes alone.

Layouts: bitsandbytes' and transformers' save_pretrained; https://github.com/vllm-project/compressed-tensors;
https://github.com/AutoGPTQ/AutoGPTQ (GPTQ); https://github.com/casper-hansen/AutoAWQ (GEMM). GGUF: see gguf_mixes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.domain.quantization.gguf_mixes import gguf_bytes
from app.domain.quantization.spec import LAYER_WEIGHT, MethodParams, MethodSpec

Shape = tuple[int, ...]
WIDTHS: Final = {"fp32": 4, "fp16": 2, "bf16": 2}
HALF: Final = 2
# FP8 scales stay in 32 bits.
SCALE_BYTES: Final = 4
# The text in which bitsandbytes keeps a 4-bit weight's shape and type, and the tables of its codes.
STATE_BYTES: Final = 90
CODES_BYTES: Final = 16 * 4
NESTED_BLOCK: Final = 256
NESTED_CODES_BYTES: Final = 256 * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of a checkpoint: its type by safetensors' name, and its bytes."""

    dtype: str
    shape: Shape
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsEstimate:
    """`packed_bytes` of the `total_bytes` hold quantized weights, without their scales; `parameters` are theirs."""

    total_bytes: int
    packed_bytes: int
    packed_parameters: int
    largest_tensor_bytes: int


def estimate_weights(
    spec: MethodSpec, params: MethodParams, tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> WeightsEstimate:
    """The size of the artifact that a method makes of a checkpoint with these tensors and this config.json."""
    largest = max(tensor.size_bytes for tensor in tensors.values())
    if spec.name == "gguf":
        total = gguf_bytes(params, {name: tensor.shape for name, tensor in tensors.items()}, config)
        return WeightsEstimate(
            total_bytes=total, packed_bytes=total, packed_parameters=_count(tensors), largest_tensor_bytes=largest
        )
    chosen = {name: each.shape for name, each in tensors.items() if is_quantized(name, each.shape, params, spec)}
    kept = sum(kept_bytes(params, tensor) for name, tensor in tensors.items() if name not in chosen)
    packed = sum(packed_bytes(params, spec, shape) for shape in chosen.values())
    beside = sum(BESIDE[spec.name](params, shape) for shape in chosen.values())
    return WeightsEstimate(
        total_bytes=int(kept + packed + beside),
        packed_bytes=int(packed),
        packed_parameters=sum(math.prod(shape) for shape in chosen.values()),
        largest_tensor_bytes=largest,
    )


def _count(tensors: Mapping[str, StoredTensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def is_quantized(name: str, shape: Shape, params: MethodParams, spec: MethodSpec) -> bool:
    """Matrices of the numbered layers are, unless they are to be skipped; a cast takes everything as it comes."""
    if spec.name == "none" or len(shape) != 2:
        return False
    if name == "lm_head.weight":
        return bool(getattr(params, "lm_head", False))
    skipped = getattr(params, "skip_modules", ())
    return bool(LAYER_WEIGHT.search(name)) and not any(key in name for key in skipped)


def kept_bytes(params: MethodParams, tensor: StoredTensor) -> int:
    """What is not quantized is cast: to the type that was asked for, else to 16 bits."""
    if not tensor.dtype.startswith(("F", "BF")):
        return tensor.size_bytes
    wanted = getattr(params, "dtype", None) or getattr(params, "compute_dtype", None)
    return math.prod(tensor.shape) * WIDTHS.get(wanted or "", HALF)


def packed_bytes(params: MethodParams, spec: MethodSpec, shape: Shape) -> float:
    return math.prod(shape) * weight_bits(params, spec) / 8


def weight_bits(params: MethodParams, spec: MethodSpec) -> int:
    """Bits of one packed weight, without its share of scales."""
    if spec.name == "bitsandbytes":
        return 8 if getattr(params, "quantization", "") == "int8" else 4
    return int(getattr(params, "bits", 0)) or {"fp8": 8, "int8": 8, "int4": 4, "fp4": 4}[spec.name]


def _bitsandbytes(params: Any, shape: Shape) -> float:
    if params.quantization == "int8":
        return shape[0] * 4 + 1  # a float32 scale per row, and the number of the layout
    blocks: int = -(-math.prod(shape) // params.blocksize)
    if not params.double_quant:
        return blocks * 4 + CODES_BYTES + STATE_BYTES
    return blocks + -(-blocks // NESTED_BLOCK) * 4 + NESTED_CODES_BYTES + CODES_BYTES + STATE_BYTES


def _fp8(params: Any, shape: Shape) -> float:
    if params.granularity == "block":
        return math.prod(-(-size // 128) for size in shape) * SCALE_BYTES
    return shape[0] * SCALE_BYTES


def _int4(params: Any, shape: Shape) -> float:
    groups: int = shape[0] * (1 if params.group_size == -1 else shape[1] // params.group_size)
    return float(groups * HALF + 16 + (0 if params.symmetric else groups / 2))


def _fp4(params: Any, shape: Shape) -> float:
    return math.prod(shape) / 16 + 4 if params.format == "nvfp4" else math.prod(shape) / 32


def _gptq(params: Any, shape: Shape) -> float:
    """Scales in 16 bits and packed zero points per group and output, and the group of each input."""
    groups: int = shape[0] * (1 if params.group_size == -1 else -(-shape[1] // params.group_size))
    return float(groups * (HALF + params.bits / 8) + shape[1] * 4)


def _awq(params: Any, shape: Shape) -> float:
    return float(shape[0] * -(-shape[1] // params.group_size) * (HALF + params.bits / 8))


# What stands beside a packed weight of shape (out, in), in bytes.
BESIDE: Final[dict[str, Callable[[Any, Shape], float]]] = {
    "none": lambda params, shape: 0,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "int8": lambda params, shape: shape[0] * HALF,
    "int4": _int4,
    "fp4": _fp4,
    "gptq": _gptq,
    "hqq": _gptq,
    "autoround": lambda params, shape: (_awq if params.layout == "awq" else _gptq)(params, shape),
    "awq": _awq,
    "qat": lambda params, shape: shape[0] * shape[1] // params.group_size * HALF + 16,
}
