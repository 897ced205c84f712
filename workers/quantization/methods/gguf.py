"""GGUF in steps: our converter to an unquantized file, an importance matrix, llama.cpp's quantizer.

The first two are shared by every job on the same model.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from gguf.tensor_mapping import TensorNameMap

from app.domain.artifacts import QuantizationReport
from app.domain.errors import UnsupportedArchitecture
from app.domain.files import FilePurpose
from app.domain.quantization.calibration import CalibrationRecord
from app.domain.quantization.methods.gguf import SPEC, GgufParams
from app.storage.checkpoints import Checkpoint
from workers.calibration.windows import CalibrationSet
from workers.quantization.base import JobRun, Part, QuantizationMethod
from workers.quantization.gguf.converter import FILE_TYPES, convert, native_type
from workers.quantization.gguf.external import convert_externally
from workers.quantization.gguf.families import FAMILIES
from workers.quantization.gguf.header import HeaderReader
from workers.quantization.gguf.importance import FILE, compute_importance
from workers.quantization.gguf.importance_files import Importance, read_importance
from workers.quantization.gguf.llama_quantize import Recipe, quantize_file
from workers.quantization.gguf.overrides import match_tensors
from workers.quantization.gguf.splitting import split_file

MODEL_FILE = "model.gguf"


class GgufMethod(QuantizationMethod[GgufParams]):
    spec = SPEC

    def check_environment(self) -> None:
        # Its shared library may be missing or made for another processor even where the package is there.
        import llama_cpp

        llama_cpp.llama_backend_init()

    def quantize(self, source: Checkpoint, target: Path, params: GgufParams, run: JobRun) -> QuantizationReport:
        final = target / MODEL_FILE
        record = _write(source, final, params, Part(run, 0.0, 0.95))
        files = split_file(final, params.split_bytes, Part(run, 0.95, 1.0)) if params.split_bytes else [final]
        return read_report(files).model_copy(update={"calibration": record})


def _write(source: Checkpoint, final: Path, params: GgufParams, run: JobRun) -> CalibrationRecord | None:
    built_in = source.architecture in FAMILIES
    if built_in and params.quantization in FILE_TYPES and not params.overrides_types:
        convert(source, final, params.quantization, run)
        return None
    part = Part(run, 0.0, 0.2)
    converted = converted_file(source, part) if built_in else externally_converted_file(source, part)
    recipe = recipe_of(params, converted)
    importance, record = _importance(source, converted, params, Part(run, 0.2, 0.6))
    quantize_file(converted, final, recipe, importance, Part(run, 0.6, 1.0))
    return record


def recipe_of(params: GgufParams, converted: Path) -> Recipe:
    """The parameters in terms of the converted file's tensors. Raises InvalidParameter."""
    # llama.cpp quantizes matrices only, and leaves vectors as they are.
    matrices = (tensor.name for tensor in HeaderReader(converted).tensors if len(tensor.shape) > 1)
    chosen = match_tensors(params.tensor_types, matrices)
    return Recipe(params.quantization, params.output_type, params.embedding_type, chosen)


def _importance(
    source: Checkpoint, converted: Path, params: GgufParams, run: JobRun
) -> tuple[Importance | None, CalibrationRecord | None]:
    if params.importance_matrix not in ("auto", "none"):
        path = run.upload(params.importance_matrix, FilePurpose.IMATRIX, param="method.importance_matrix")
        return read_importance(path), None
    wanted = params.calibration_wanted()
    if wanted is None:
        return None, None
    calibration = run.calibration(wanted, Part(run, 0.0, 0.25).report)
    return importance_of(source, converted, calibration, Part(run, 0.25, 1.0)), calibration.record


def converted_file(source: Checkpoint, run: JobRun) -> Path:
    """The model in GGUF, unquantized: one for all types."""
    type_name = native_type(source)

    def build(folder: Path) -> None:
        convert(source, folder / MODEL_FILE, type_name, run)

    return run.stage("gguf", {"type": type_name}, build) / MODEL_FILE


def externally_converted_file(source: Checkpoint, run: JobRun) -> Path:
    """The same by the installation's own converter. Raises UnsupportedArchitecture where there is none."""
    command = run.gguf_converter
    if command is None:
        raise UnsupportedArchitecture(
            f"a {source.architecture} has no built-in converter to GGUF; set BITMILL_GGUF_CONVERTER", param="model"
        )

    def build(folder: Path) -> None:
        def tell() -> None:
            run.report(0.0, "converting to GGUF")

        tell()
        convert_externally(command, source.path, folder / MODEL_FILE, tell)

    return run.stage("gguf", {"converter": command}, build) / MODEL_FILE


def importance_of(source: Checkpoint, converted: Path, calibration: CalibrationSet, run: JobRun) -> Importance:
    """The importance matrix: one for all types that are calibrated alike."""
    recipe = {"windows": calibration.record.sha256}

    def build(folder: Path) -> None:
        def report(fraction: float) -> None:
            run.report(fraction, "computing the importance matrix")

        compute_importance(source, calibration, names_in(converted), folder / FILE, report)

    return read_importance(run.stage("imatrix", recipe, build) / FILE)


def names_in(converted: Path) -> TensorNameMap:
    """From transformers' tensor names to those of a GGUF file. Raises UnsupportedArchitecture."""
    fields = HeaderReader(converted).fields
    name = str(fields["general.architecture"].contents())
    known = {text: arch for arch, text in MODEL_ARCH_NAMES.items()}
    if name not in known:
        raise UnsupportedArchitecture(
            f"gguf-py knows no tensor names of llama.cpp's {name!r}, so that no importance matrix can be computed; "
            f"set importance_matrix to 'none' or to an uploaded one",
            param="method.importance_matrix",
        )
    return get_tensor_name_map(known[name], int(fields[f"{name}.block_count"].contents()))


def read_report(files: list[Path]) -> QuantizationReport:
    """Counts what a model's files really hold: llama.cpp falls back where a type does not fit."""
    tensors = [tensor for file in files for tensor in HeaderReader(file).tensors]
    return QuantizationReport(
        tensor_types=dict(Counter(tensor.tensor_type.name for tensor in tensors)),
        parameter_count=sum(int(tensor.n_elements) for tensor in tensors),
        weight_bytes=sum(int(tensor.n_bytes) for tensor in tensors),
    )
