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
import torch
from gguf import GGUFWriter
from gguf.tensor_mapping import TensorNameMap

from app.storage.checkpoints import Checkpoint
from workers.calibration.streamed_model import open_streamed
from workers.calibration.windows import CalibrationSet
from workers.quantization.gguf.importance_files import COUNTS, SUMS

FILE: Final = "imatrix.gguf"
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


@dataclass
class Passes:
    """Which of several passes through the model is running; `tell` hears the fraction of them all."""

    count: int
    tell: Callable[[float], None]
    number: int = 0

    def report(self, fraction: float) -> None:
        self.tell((self.number + fraction) / self.count)


def compute_importance(
    source: Checkpoint, calibration: CalibrationSet, names: TensorNameMap, target: Path, report: Callable[[float], None]
) -> None:
    """Runs the calibration windows through the original and writes llama.cpp's imatrix file.

    `names` maps the checkpoint's tensor names to GGUF's. The output head is left out, as llama.cpp does.
    """
    model = open_streamed(source)
    batch = max(TOKENS_PER_PASS // calibration.record.sequence_length, 1)
    starts = range(0, len(calibration.windows), batch)
    progress = Passes(len(starts), report)
    found = _watch(model, names, progress)
    with torch.inference_mode():
        for number, start in enumerate(starts):
            progress.number = number
            ids = torch.from_numpy(calibration.windows[start : start + batch]).to(_device())
            # The decoder alone: the head's logits for every position would be the largest tensor of all.
            model.get_decoder()(input_ids=ids, use_cache=False)
    _write(target, found, calibration)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _watch(model: Any, names: TensorNameMap, progress: Passes) -> dict[str, SquaredInputs]:
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
        module.register_forward_pre_hook(_collector(entry, number / len(linears), progress))
    return found


def _collector(entry: SquaredInputs, fraction: float, progress: Passes) -> Callable[[Any, Any], None]:
    def collect(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        entry.add(inputs[0])
        progress.report(fraction)

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
