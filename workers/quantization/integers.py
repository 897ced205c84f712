"""Integer weights in the compressed-tensors format: streamed where no data is needed, else layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from compressed_tensors.quantization import QuantizationScheme
from safetensors import safe_open

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.calibration import CalibrationParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, Part
from workers.quantization.calibrated import LayerQuantizer, Rounding
from workers.quantization.casting import require_finite
from workers.quantization.compressed import (
    configuration,
    grid_of,
    part_names,
    require_divisible,
    store_codes,
    stream_compressed,
)
from workers.quantization.linears import Linears, find_linears
from workers.quantization.sequential import LayerWalk
from workers.quantization.streaming import Conversion, Stored, dtype_entry, kept, model_dtype, stream

# How reports call the weights, by their bits: as safetensors does where it has a type of its own.
TYPE_NAMES: Final = {4: "INT4", 8: "I8"}


def quantize_integers(
    source: Checkpoint,
    target: Path,
    scheme: QuantizationScheme,
    rounding: Rounding,
    skip: tuple[str, ...],
    calibration: CalibrationParams | None,
    run: JobRun,
) -> QuantizationReport:
    """Quantizes the Linear layers that `skip` does not name to the scheme's integers, into the empty folder `target`.

    Without `calibration` each weight is rounded to the nearest step.
    """
    # The loader puts together experts that are packed, and knows no zero points of theirs.
    experts = calibration is None and scheme.weights.symmetric and scheme.weights.num_bits < 8
    linears = find_linears(source, skip, experts=experts)
    type_name = TYPE_NAMES[scheme.weights.num_bits]
    if calibration is None:
        return stream_compressed(source, target, linears, scheme, type_name, run)
    for name, module in linears.quantized.items():
        require_divisible(name, module.weight, scheme)
    found = run.calibration(calibration, Part(run, 0.0, 0.1).report)
    walk = LayerWalk(source, found, Part(run, 0.1, 0.9), run.checkpoints / "layers")
    dtype = model_dtype(source)
    quantizer = LayerQuantizer(rounding, lambda weight: grid_of(weight, scheme, dtype), linears, walk.weights)
    files = walk.walk(quantizer)
    report = _assemble(source, target, scheme, type_name, linears, files, Part(run, 0.9, 1.0))
    return report.model_copy(update={"calibration": found.record})


def _assemble(
    source: Checkpoint,
    target: Path,
    scheme: QuantizationScheme,
    type_name: str,
    linears: Linears,
    files: list[Path],
    run: JobRun,
) -> QuantizationReport:
    """Writes the layers' outcomes in place of the tensors that they were made of."""
    dtype = model_dtype(source)
    found = {name: file for file in files for name in _names(file)}

    def convert(name: str, tensor: torch.Tensor) -> Stored:
        if name not in found:
            return kept(name, tensor, dtype)
        module = linears.module_of(name)
        if module is None:  # a norm that took over a division
            return kept(name, _read(found[name], name), dtype)
        codes, scale, zero_point = (_read(found[name], f"{name}{part}") for part in ("", "_scale", "_zero_point"))
        parts = store_codes(codes, require_finite(module, scale), zero_point, scheme)
        return Stored(type_name, [(f"{module}.{part}", value) for part, value in parts.items()])

    conversion = Conversion("writing the model", convert, part_names)
    entry = configuration(scheme, linears.skipped)
    return stream(source, target, conversion, {**dtype_entry(dtype), "quantization_config": entry}, run)


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor
