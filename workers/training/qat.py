"""Quantization-aware training: every weight is trained, those of Linear layers rounded in the forward pass.

What is written is packed as compressed-tensors does it, from the very codes that the model trained with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from compressed_tensors.config import CompressionFormat

from app.domain.errors import UnsupportedArchitecture
from app.domain.fine_tuning import TrainingOptions
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import WritingRun
from workers.quantization.compressed import configuration, part_names, require_divisible, store_codes
from workers.quantization.linears import Linears, find_linears
from workers.quantization.streaming import Conversion, Stored, dtype_entry, kept, stream
from workers.training.fake_quantization import STORED, FakeQuantizedLinear, scheme_of
from workers.training.full import Full
from workers.training.recipe import Base, Written
from workers.training.rounding import to_bfloat16

# How reports call the weights: as safetensors does where each code has a byte of its own.
TYPE_NAMES: Final = {CompressionFormat.pack_quantized: "INT4", CompressionFormat.int_quantized: "I8"}


class Qat(Full):
    """`skip` names Linear layers to leave alone, as the methods' skip_modules does."""

    def __init__(self, options: TrainingOptions, skip: tuple[str, ...] = ()) -> None:
        super().__init__(options)
        self.skip = skip

    def load(self, base: Checkpoint) -> Any:
        grid = self.options.grid
        scheme = scheme_of(grid.type, grid.group_size)
        self.linears = find_linears(base, self.skip)
        _require_stored(base, self.linears)
        model = super().load(base)
        for name in self.linears.quantized:
            linear = model.get_submodule(name)
            require_divisible(name, linear.weight, scheme)
            model.set_submodule(name, FakeQuantizedLinear.of(linear, scheme))
        return model

    def save(self, model: Any, base: Base, target: Path, scratch: Path, run: WritingRun) -> Written:
        grid = self.options.grid
        scheme = scheme_of(grid.type, grid.group_size)
        trained = model.state_dict()

        def convert(name: str, tensor: torch.Tensor) -> Stored:
            module = self.linears.module_of(name)
            if module is None:
                return kept(name, to_bfloat16(name, trained[name]) if name in trained else tensor, STORED)
            codes, found = model.get_submodule(module).grid()
            parts = store_codes(codes.cpu(), found.scale.cpu(), found.zero_point.cpu(), scheme)
            return Stored(TYPE_NAMES[scheme.format], [(f"{module}.{part}", value) for part, value in parts.items()])

        conversion = Conversion("packing the model", convert, part_names)
        entry = {"quantization_config": configuration(scheme, self.linears.skipped)}
        report = stream(base.checkpoint, target, conversion, dtype_entry(STORED) | entry, run)
        return Written(report.tensor_types, report.parameter_count, report.weight_bytes)


def _require_stored(base: Checkpoint, linears: Linears) -> None:
    """The files are gone through to write the result: each layer must be found in them."""
    for name in linears.quantized:
        if f"{name}.weight" not in base.tensors:
            raise UnsupportedArchitecture(
                f"the files of this {base.architecture} hold no {name}.weight, so that what is trained could not be "
                f"written; train with the adapter full and quantize the result",
                param="model",
            )
