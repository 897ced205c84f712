"""Streams FP8 weights: E4M3 by compressed-tensors, E5M2, which that format lacks, by torchao."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from compressed_tensors.quantization import QuantizationScheme

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.fp8 import SPEC, Fp8Params
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.casting import cast
from workers.quantization.compressed import scheme, stream_compressed
from workers.quantization.linears import Linears, find_linears
from workers.quantization.streaming import Conversion, Stored, dtype_entry, kept, model_dtype, stream

# What torchao writes about one tensor into a file's metadata, at most.
METADATA_BYTES: Final = 1024


class Fp8Method(QuantizationMethod[Fp8Params]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: Fp8Params, run: JobRun) -> QuantizationReport:
        # Scales of blocks are not what the loader puts experts together by.
        experts = params.format == "e4m3" and params.granularity == "channel"
        linears = find_linears(source, params.skip_modules, experts=experts)
        if params.format == "e5m2":
            return _stream_e5m2(source, target, linears, run)
        return stream_compressed(source, target, linears, _scheme(params), "F8_E4M3", run)


def _scheme(params: Fp8Params) -> QuantizationScheme:
    found = scheme("FP8_BLOCK" if params.granularity == "block" else "FP8_DYNAMIC")
    if params.activations == "none":
        found.input_activations = None
    return found


def _stream_e5m2(source: Checkpoint, target: Path, linears: Linears, run: JobRun) -> QuantizationReport:
    """One float32 scale per row of each weight (out, in)."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Float8Tensor, PerRow

    dtype = model_dtype(source)
    # The loader puts the files' metadata together and looks each of these names up in it.
    all_names = {"tensor_names": json.dumps(list(source.tensors))}

    def convert(name: str, tensor: torch.Tensor) -> Stored:
        if linears.module_of(name) is None:
            plain = kept(name, tensor, dtype)
            return Stored(plain.type, plain.parts, {**all_names, name: '{"_type": "Tensor"}'})
        weight = Float8Tensor.from_hp(cast(name, tensor, dtype), float8_dtype=torch.float8_e5m2, granularity=PerRow())
        _settle_empty_rows(weight)
        parts, metadata = flatten_tensor_state_dict({name: weight})
        return Stored("F8_E5M2", parts.items(), metadata | all_names)

    conversion = Conversion("quantizing to fp8 e5m2", convert, _part_names, METADATA_BYTES)
    return stream(source, target, conversion, {**dtype_entry(dtype), "quantization_config": _entry(linears)}, run)


def _settle_empty_rows(weight: Any) -> None:
    """A row of zeros gets the scale 0 from the library, and was divided by it: its codes are 0, whatever the scale."""
    empty = weight.scale < torch.finfo(weight.scale.dtype).tiny
    weight.scale[empty] = 1.0
    weight.qdata.view(torch.uint8)[empty.flatten()] = 0


def _part_names(name: str) -> list[str]:
    module = name.removesuffix("weight")
    return [name, f"{module}_weight_qdata", f"{module}_weight_scale"]


def _entry(linears: Linears) -> dict[str, Any]:
    from torchao.quantization import Float8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2)
    entry: dict[str, Any] = TorchAoConfig(config, modules_to_not_convert=linears.skipped).to_dict()
    return entry
