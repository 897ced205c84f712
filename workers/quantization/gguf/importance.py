"""Importance matrices: how large the inputs of each matrix's columns are, in the mean of their squares.

llama.cpp's quantizers weigh a column's rounding errors by it. The file format is llama.cpp's own (a GGUF of type
`imatrix`): https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/README.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGUFReader, GGUFWriter
from gguf.tensor_mapping import TensorNameMap

from app.domain.errors import InvalidParameter
from app.storage.checkpoints import Checkpoint
from workers.calibration.streamed_model import open_streamed
from workers.calibration.windows import CalibrationSet

Importance = dict[str, npt.NDArray[np.float32]]

FILE: Final = "imatrix.gguf"
SUMS: Final = ".in_sum2"
COUNTS: Final = ".counts"
# Tokens that go through the model together: they share one reading of the weights, and their activations must fit.
TOKENS_PER_PASS: Final = 4096


@dataclass
class SquaredInputs:
    """Sums over all tokens of the squared inputs of one matrix, per column."""

    sums: torch.Tensor
    count: int = 0

    def add(self, inputs: torch.Tensor) -> None:
        """`inputs` (…, columns)."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        self.sums += rows.square().sum(dim=0).double().cpu()
        self.count += rows.shape[0]


def compute_importance(
    source: Checkpoint, calibration: CalibrationSet, names: TensorNameMap, target: Path, report: Callable[[float], None]
) -> None:
    """Runs the calibration windows through the original and writes llama.cpp's imatrix file.

    `names` maps the checkpoint's tensor names to GGUF's. The output head is left out, as llama.cpp does.
    """
    model = open_streamed(source)
    found = _watch(model, names, source, report)
    length = calibration.record.sequence_length
    batch = max(TOKENS_PER_PASS // length, 1)
    with torch.inference_mode():
        for start in range(0, len(calibration.windows), batch):
            ids = torch.from_numpy(calibration.windows[start : start + batch]).to(_device())
            # The decoder alone: the head's logits for every position would be the largest tensor of all.
            model.get_decoder()(input_ids=ids, use_cache=False)
    _write(target, found, calibration)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _watch(
    model: Any, names: TensorNameMap, source: Checkpoint, report: Callable[[float], None]
) -> dict[str, SquaredInputs]:
    """Collects the inputs of every Linear layer under its GGUF name, and tells how far the pass is."""
    found: dict[str, SquaredInputs] = {}
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    head = model.get_output_embeddings()
    for number, (name, module) in enumerate(linears):
        if module is head:
            continue
        mapped = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
        if mapped is None:
            continue  # the converter has refused the model, or splits this weight itself
        entry = found[mapped] = SquaredInputs(torch.zeros(module.in_features, dtype=torch.float64))
        module.register_forward_pre_hook(_collector(entry, number / len(linears), report))
    return found


def _collector(entry: SquaredInputs, fraction: float, report: Callable[[float], None]) -> Callable[[Any, Any], None]:
    def collect(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        entry.add(inputs[0])
        report(fraction)

    return collect


def _write(target: Path, found: dict[str, SquaredInputs], calibration: CalibrationSet) -> None:
    writer = GGUFWriter(target, arch="imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [calibration.record.dataset])
    writer.add_uint32("imatrix.chunk_count", len(calibration.windows))
    writer.add_uint32("imatrix.chunk_size", calibration.record.sequence_length)
    for name, entry in found.items():
        writer.add_tensor(name + SUMS, entry.sums.float().numpy()[None])
        writer.add_tensor(name + COUNTS, np.array([[entry.count]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_importance(path: Path) -> Importance:
    """Mean squares per column, by GGUF tensor name. Raises InvalidParameter for a file of another kind."""
    try:
        tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    except ValueError as error:
        raise _no_matrix(path, str(error)) from error
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    if not names:
        raise _no_matrix(path, "it holds no tensor that ends in .in_sum2")
    return {name: _mean(tensors[name + SUMS], tensors[name + COUNTS]) for name in names if name + COUNTS in tensors}


def _mean(sums: npt.NDArray[np.float32], counts: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(experts, columns) sums by (experts, 1) counts, flattened; an expert that saw nothing weighs all alike."""
    sums, counts = np.atleast_2d(sums), counts.reshape(-1, 1)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), 1.0)
    return np.ascontiguousarray(means.ravel(), dtype=np.float32)


def _no_matrix(path: Path, reason: str) -> InvalidParameter:
    return InvalidParameter(
        f"{path.name} is no importance matrix in GGUF ({reason}); make one with llama-imatrix, or leave "
        f"importance_matrix at 'auto'",
        param="method.importance_matrix",
    )
