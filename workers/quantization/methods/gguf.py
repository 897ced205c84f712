"""GGUF in steps: our converter to an unquantized file, an importance matrix, llama.cpp's quantizer.

The first two are shared by every job on the same model.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from gguf import GGUFReader

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.gguf import SPEC, GgufParams
from app.storage.checkpoints import Checkpoint
from workers.calibration.windows import CalibrationSet
from workers.quantization.base import JobRun, Part, QuantizationMethod
from workers.quantization.gguf.converter import FILE_TYPES, convert, native_type, tensor_names
from workers.quantization.gguf.importance import FILE, Importance, compute_importance, read_importance
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
            return read_report(final)
        converted = converted_file(source, Part(run, 0.0, 0.2))
        wanted = params.calibration_wanted()
        calibration = run.calibration(wanted, Part(run, 0.2, 0.3).report) if wanted else None
        importance = importance_of(source, calibration, Part(run, 0.3, 0.6)) if calibration else None
        quantize_file(converted, final, params.quantization, importance, Part(run, 0.6, 1.0))
        record = calibration.record if calibration else None
        return read_report(final).model_copy(update={"calibration": record})


def converted_file(source: Checkpoint, run: JobRun) -> Path:
    """The model in GGUF, unquantized: one for all types."""
    type_name = native_type(source)

    def build(folder: Path) -> None:
        convert(source, folder / MODEL_FILE, type_name, run)

    return run.stage("gguf", {"type": type_name}, build) / MODEL_FILE


def importance_of(source: Checkpoint, calibration: CalibrationSet, run: JobRun) -> Importance:
    """The importance matrix: one for all types that are calibrated alike."""
    recipe = {"windows": calibration.record.sha256}

    def build(folder: Path) -> None:
        def report(fraction: float) -> None:
            run.report(fraction, "computing the importance matrix")

        compute_importance(source, calibration, tensor_names(source), folder / FILE, report)

    return read_importance(run.stage("imatrix", recipe, build) / FILE)


def read_report(path: Path) -> QuantizationReport:
    """Counts what a GGUF file really holds: llama.cpp falls back where a type does not fit."""
    tensors = GGUFReader(path).tensors
    return QuantizationReport(
        tensor_types=dict(Counter(tensor.tensor_type.name for tensor in tensors)),
        parameter_count=sum(int(tensor.n_elements) for tensor in tensors),
        weight_bytes=sum(int(tensor.n_bytes) for tensor in tensors),
    )
