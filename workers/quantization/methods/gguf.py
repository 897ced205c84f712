"""GGUF in two steps: our converter to an unquantized file, llama.cpp's quantizer to the rest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from gguf import GGUFReader

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.gguf import SPEC, GgufParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.gguf.converter import FILE_TYPES, convert, native_type
from workers.quantization.gguf.llama_quantize import quantize_file

MODEL_FILE = "model.gguf"


class GgufMethod(QuantizationMethod[GgufParams]):
    spec = SPEC

    def check_environment(self) -> None:
        # Its shared library may be missing or made for another processor even where the package is there.
        import llama_cpp

        llama_cpp.llama_backend_init()

    def quantize(self, source: Checkpoint, target: Path, params: GgufParams, run: JobRun) -> QuantizationReport:
        final = target / MODEL_FILE
        if params.quantization in FILE_TYPES:
            convert(source, final, params.quantization, run)
        else:
            converted = target / "unquantized.gguf"
            convert(source, converted, native_type(source), Half(run, 0.0))
            quantize_file(converted, final, params.quantization, Half(run, 0.5))
            converted.unlink()
        return read_report(final)


class Half:
    """A JobRun for one half of the work."""

    def __init__(self, run: JobRun, start: float) -> None:
        self._run = run
        self._start = start

    @property
    def max_shard_bytes(self) -> int:
        return self._run.max_shard_bytes

    def report(self, fraction: float, stage: str) -> None:
        self._run.report(self._start + fraction / 2, stage)


def read_report(path: Path) -> QuantizationReport:
    """Counts what a GGUF file really holds: llama.cpp falls back where a type does not fit."""
    tensors = GGUFReader(path).tensors
    return QuantizationReport(
        tensor_types=dict(Counter(tensor.tensor_type.name for tensor in tensors)),
        parameter_count=sum(int(tensor.n_elements) for tensor in tensors),
        weight_bytes=sum(int(tensor.n_bytes) for tensor in tensors),
    )
