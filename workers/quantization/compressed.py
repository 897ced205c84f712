"""Weights in the compressed-tensors format, which transformers and vLLM load.

The arithmetic and the layouts are the library's: https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
    QuantizationType,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams, calculate_range, generate_gparam

from app.domain.artifacts import QuantizationReport
from app.domain.errors import IncompatibleModel
from app.storage.checkpoints import Checkpoint
from workers.quantization.algorithms.grid import Grid
from workers.quantization.base import JobRun
from workers.quantization.casting import cast, require_finite
from workers.quantization.linears import Linears
from workers.quantization.streaming import Conversion, Stored, dtype_entry, kept, model_dtype, stream

Tensors = dict[str, torch.Tensor]

# What may stand behind a module's name for each of its tensors.
PARTS: Final = ("weight", "weight_packed", "weight_scale", "weight_global_scale", "weight_zero_point", "weight_shape")

# Their scales are stored in the weight's own type, in which they are loaded, and rounding goes by what is stored.
INTEGER_FORMATS: Final = (CompressionFormat.pack_quantized, CompressionFormat.int_quantized)


def scheme(preset: str) -> QuantizationScheme:
    """One of the library's presets, such as FP8_DYNAMIC or W8A8, for all Linear layers."""
    return with_format(preset_name_to_scheme(preset, ["Linear"]))


def integer_scheme(bits: int, *, group_size: int, symmetric: bool) -> QuantizationScheme:
    """Integer weights alone; a group size of -1 takes whole rows."""
    weights = QuantizationArgs(
        num_bits=bits,
        type=QuantizationType.INT,
        strategy=QuantizationStrategy.CHANNEL if group_size == -1 else QuantizationStrategy.GROUP,
        group_size=None if group_size == -1 else group_size,
        symmetric=symmetric,
    )
    return with_format(QuantizationScheme(targets=["Linear"], weights=weights))


def with_format(scheme: QuantizationScheme) -> QuantizationScheme:
    """The scheme with the layout in which its weights are stored, as the library chooses it."""
    scheme.format = infer_module_format(torch.nn.Linear, scheme)
    return scheme


def stream_compressed(
    source: Checkpoint,
    target: Path,
    linears: Linears,
    scheme: QuantizationScheme,
    type_name: str,
    run: JobRun,
    *,
    dtype: torch.dtype | None = None,
) -> QuantizationReport:
    """Quantizes the chosen Linear layers one by one; the others' tensors take `dtype`, or the source's own 16 bits."""
    dtype = dtype or model_dtype(source)

    def convert(name: str, tensor: torch.Tensor) -> Stored:
        module = linears.module_of(name)
        if module is None:
            return kept(name, tensor, dtype)
        parts = compress(module, cast(name, tensor, dtype), scheme)
        return Stored(type_name, [(f"{module}.{part}", value) for part, value in parts.items()])

    conversion = Conversion(f"quantizing to {type_name}", convert, part_names)
    entry = configuration(scheme, linears.skipped, fused=linears.fused)
    return stream(source, target, conversion, {**dtype_entry(dtype), "quantization_config": entry}, run)


def part_names(name: str) -> list[str]:
    return [name, *(name.removesuffix("weight") + part for part in PARTS)]


def compress(module: str, weight: torch.Tensor, scheme: QuantizationScheme) -> Tensors:
    """The tensors, by their local names, that a Linear's weight (out, in) becomes.

    Raises IncompatibleModel when the scheme's groups do not divide its rows, or its weights are too large for scales.
    """
    require_divisible(module, weight, scheme)
    if scheme.format in INTEGER_FORMATS:
        grid = grid_of(weight, scheme, weight.dtype)
        return store_codes(grid.round(weight.float()), require_finite(module, grid.scale), grid.zero_point, scheme)
    state = {"weight": weight, **_scales(weight.float(), scheme)}
    require_finite(module, state["weight_scale"].float())
    compressor = BaseCompressor.get_value_from_registry(scheme.format.value)
    tensors: Tensors = compressor.compress(state, scheme)
    return {name: _without_gradient(tensor) for name, tensor in tensors.items()}


def _without_gradient(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous()


def require_divisible(module: str, weight: torch.Tensor, scheme: QuantizationScheme) -> None:
    group = scheme.weights.group_size
    if group is not None and group > 0 and weight.shape[-1] % group:
        raise IncompatibleModel(
            f"{module} has rows of {weight.shape[-1]} weights, which groups of {group} do not divide; name it in "
            f"skip_modules, or choose a method with scales per channel",
            param="method",
        )


def _scales(weight: torch.Tensor, scheme: QuantizationScheme) -> Tensors:
    """Scales from the extremes of each channel, group or block; a global one where the format has it."""
    arguments = scheme.weights
    low, high = _extremes(weight, arguments)
    state: Tensors = {}
    if arguments.strategy == QuantizationStrategy.TENSOR_GROUP:
        state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
    scale, _ = calculate_qparams(low, high, arguments, global_scale=state.get("weight_global_scale"))
    state["weight_scale"] = scale
    return state


def _extremes(weight: torch.Tensor, arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest weight of each part that has a scale of its own."""
    match arguments.strategy:
        case QuantizationStrategy.TENSOR:
            return weight.min(), weight.max()
        case QuantizationStrategy.CHANNEL:
            return weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
        case QuantizationStrategy.BLOCK:
            blocks = _blocks(weight, *arguments.block_structure)
            return blocks.amin(dim=(1, 3)), blocks.amax(dim=(1, 3))
        case _:
            groups = weight.unflatten(1, (-1, arguments.group_size))
            return groups.amin(dim=-1), groups.amax(dim=-1)


def _blocks(weight: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(out, in) as (rows of blocks, height, columns of blocks, width); zeros fill the last ones."""
    rows, columns = -(-weight.shape[0] // height), -(-weight.shape[1] // width)
    padding = (0, columns * width - weight.shape[1], 0, rows * height - weight.shape[0])
    return torch.nn.functional.pad(weight, padding).reshape(rows, height, columns, width)


def grid_of(weight: torch.Tensor, scheme: QuantizationScheme, dtype: torch.dtype) -> Grid:
    """The values that an integer scheme lets a weight (out, in) take, with scales as they are stored in `dtype`."""
    low, high = _extremes(weight.float(), scheme.weights)
    scale, zero_point = calculate_qparams(low, high, scheme.weights)
    lowest, highest = calculate_range(scheme.weights, weight.device)
    return Grid(_stored_scale(scale, dtype), zero_point.to(torch.int8), int(lowest), int(highest))


def store_codes(
    codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, scheme: QuantizationScheme
) -> Tensors:
    """The tensors, by their local names, that stand for a Linear's integer codes (out, in).

    `scale` and `zero_point` are (out, groups); a symmetric scheme stores no zero points. With 8 bits the codes are
    stored as they are; with fewer they are packed into 32-bit words, along the rows, zero points along the columns.
    """
    codes, arguments = codes.to(torch.int8), scheme.weights
    if scheme.format == CompressionFormat.int_quantized:
        return {"weight": codes, "weight_scale": scale}
    packed = {
        "weight_packed": pack_to_int32(codes, arguments.num_bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(codes.shape),
    }
    if not arguments.symmetric:
        packed["weight_zero_point"] = pack_to_int32(zero_point.to(torch.int8), arguments.num_bits, packed_dim=0)
    return packed


def _stored_scale(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    stored = scale.to(dtype)
    # What is too small for the type would be divided by all the same.
    return torch.where(stored == 0, torch.finfo(dtype).tiny, stored)


def configuration(scheme: QuantizationScheme, ignore: list[str], *, fused: bool = False) -> dict[str, Any]:
    """The entry `quantization_config` of config.json. `fused` is that of the Linears."""
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=scheme.format.value,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=ignore,
    )
    entry: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    if fused or not scheme.weights.symmetric:
        # transformers' other way, which unpacks at the first use, has no place for packed zero points and experts.
        entry["dequantize"] = True
    return entry
