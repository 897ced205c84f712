"""Which weights of a checkpoint a method replaces: those of Linear layers, but not of the output head."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

import torch
from transformers.quantizers.base import get_keys_to_not_convert

from app.domain.errors import InvalidParameter, UnsupportedArchitecture
from app.domain.quantization.spec import LAYER_WEIGHT
from app.storage.checkpoints import Checkpoint
from workers.calibration.streamed_model import build_empty

# Of the layers' matrices, the share that a method must reach to deserve its name.
LEAST_COVERAGE: Final = 0.5


@dataclass(frozen=True)
class Linears:
    """Every Linear layer of a model by its module's name: those to quantize, without memory, and the others."""

    quantized: dict[str, torch.nn.Linear]
    skipped: list[str]

    def module_of(self, tensor: str) -> str | None:
        """The module whose weight this tensor is, if it is to be quantized."""
        module = tensor.removesuffix(".weight")
        return module if module != tensor and module in self.quantized else None


def find_linears(source: Checkpoint, skip: tuple[str, ...] = ()) -> Linears:
    """`skip` names modules to leave alone, by their name, its end (`down_proj`) or its start (`model.layers.0`).

    Raises UnsupportedArchitecture, or InvalidParameter for a name that no module has.
    """
    model = build_empty(source)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    _require_known(skip, list(linears))
    keys = (*get_keys_to_not_convert(model), *skip)
    _require_coverage(source, linears)
    skipped = [name for name in linears if any(_names(key, name) for key in keys)]
    return Linears({name: module for name, module in linears.items() if name not in skipped}, skipped)


def _require_coverage(source: Checkpoint, linears: dict[str, torch.nn.Linear]) -> None:
    """Experts in one tensor, and other layers than Linear, would stay as they are under the name of the method."""
    shapes = [info.shape for name, info in source.tensors.items() if LAYER_WEIGHT.search(name)]
    matrices = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    covered = sum(module.weight.numel() for name, module in linears.items() if LAYER_WEIGHT.search(f"{name}.weight"))
    if covered < LEAST_COVERAGE * matrices:
        raise UnsupportedArchitecture(
            f"only {covered / matrices:.0%} of the layers' weights of a {source.architecture} are in Linear modules, "
            f"which are all that this method quantizes; choose gguf, or none to cast",
            param="model",
        )


def _names(key: str, module: str) -> bool:
    """Whether `key` names the module, something that it lies in, or the end of its name."""
    return re.search(rf"(^|\.){re.escape(key)}(\.|$)", module) is not None


def _require_known(skip: tuple[str, ...], linears: list[str]) -> None:
    for key in skip:
        if not any(_names(key, name) for name in linears):
            raise InvalidParameter(
                f"skip_modules names {key!r}, which no Linear layer of this model has; there are such as "
                f"{', '.join(linears[:3])}",
                param="method.skip_modules",
            )
