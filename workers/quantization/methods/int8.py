"""INT8 W8A8 in the compressed-tensors format: streamed where no data is needed, else layer by layer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.int8 import SPEC, Int8Params
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, Part, QuantizationMethod
from workers.quantization.calibrated_int8 import LayerQuantizer
from workers.quantization.compressed import configuration, part_names, scheme, stream_compressed
from workers.quantization.linears import Linears, find_linears
from workers.quantization.sequential import LayerWalk
from workers.quantization.streaming import Conversion, Stored, dtype_entry, kept, model_dtype, stream


class Int8Method(QuantizationMethod[Int8Params]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: Int8Params, run: JobRun) -> QuantizationReport:
        linears = find_linears(source, params.skip_modules)
        if not params.is_calibrated:
            return stream_compressed(source, target, linears, scheme("W8A8"), "I8", run)
        calibration = run.calibration(params.calibration, Part(run, 0.0, 0.1).report)
        walk = LayerWalk(source, calibration, Part(run, 0.1, 0.9), run.checkpoints / "layers")
        files = walk.walk(LayerQuantizer(params, linears, walk.weights))
        report = _assemble(source, target, linears, files, Part(run, 0.9, 1.0))
        return report.model_copy(update={"calibration": calibration.record})


def _assemble(source: Checkpoint, target: Path, linears: Linears, files: list[Path], run: JobRun) -> QuantizationReport:
    """Writes the layers' outcomes in place of the tensors that they were made of."""
    dtype = model_dtype(source)
    found = {name: file for file in files for name in _names(file)}

    def convert(name: str, tensor: torch.Tensor) -> Stored:
        if name not in found:
            return kept(name, tensor, dtype)
        scale = f"{name}_scale"
        if scale not in found:  # a norm that took over a division
            return kept(name, _read(found[name], name), dtype)
        parts = [(name, _read(found[name], name)), (scale, _read(found[scale], scale).to(dtype))]
        return Stored("I8", parts)

    conversion = Conversion("writing the model", convert, part_names)
    entry = configuration(scheme("W8A8"), linears.skipped)
    return stream(source, target, conversion, {**dtype_entry(dtype), "quantization_config": entry}, run)


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor
