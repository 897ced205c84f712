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
# A matrix of one expert, as the files of Mixtral, Qwen's and other mixtures hold it.
EXPERT: Final = re.compile(r"\.experts\.\d+\.[^.]+\.weight$")


@dataclass(frozen=True)
class Linears:
    """Every Linear layer of a model by its module's name: those to quantize, without memory, and the others.

    `fused` tells that experts are among them, which have tensors of their own in the files only.
    """

    quantized: dict[str, torch.nn.Linear]
    skipped: list[str]
    fused: bool = False

    def module_of(self, tensor: str) -> str | None:
        """The module whose weight this tensor is, if it is to be quantized."""
        module = tensor.removesuffix(".weight")
        return module if module != tensor and module in self.quantized else None


def find_linears(source: Checkpoint, skip: tuple[str, ...] = (), *, experts: bool = False) -> Linears:
    """`skip` names modules to leave alone, by their name, its end (`down_proj`) or its start (`model.layers.0`).

    With `experts` the matrices of experts that are stored one by one count too, though the model that is built of them
    has all in one tensor: where the format's loader puts them together.

    Raises UnsupportedArchitecture, or InvalidParameter for a name that no module has.
    """
    model = build_empty(source)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    stored = _stored_experts(source, linears) if experts else {}
    linears |= stored
    _require_known(skip, list(linears))
    keys = (*get_keys_to_not_convert(model), *skip)
    _require_coverage(source, linears)
    skipped = [name for name in linears if any(_names(key, name) for key in keys)]
    _require_whole(stored, skipped)
    return Linears({name: module for name, module in linears.items() if name not in skipped}, skipped, bool(stored))


def _stored_experts(source: Checkpoint, linears: dict[str, torch.nn.Linear]) -> dict[str, torch.nn.Linear]:
    found = {name.removesuffix(".weight"): info.shape for name, info in source.tensors.items() if EXPERT.search(name)}
    return {
        name: torch.nn.Linear(shape[1], shape[0], bias=False, device="meta")
        for name, shape in found.items()
        if len(shape) == 2 and name not in linears
    }


def _require_coverage(source: Checkpoint, linears: dict[str, torch.nn.Linear]) -> None:
    """Experts in one tensor, and other layers than Linear, would stay as they are under the name of the method."""
    shapes = [info.shape for name, info in source.tensors.items() if LAYER_WEIGHT.search(name)]
    matrices = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    covered = sum(module.weight.numel() for name, module in linears.items() if LAYER_WEIGHT.search(f"{name}.weight"))
    if covered < LEAST_COVERAGE * matrices:
        raise UnsupportedArchitecture(
            f"only {covered / matrices:.0%} of the layers' weights of a {source.architecture} are in Linear modules, "
            f"which are all that this method quantizes; for experts that are stored one by one choose fp8 (granularity "
            f"'channel') or int4 (algorithm 'rtn', symmetric), else gguf, or none to cast",
            param="model",
        )


def _require_whole(experts: dict[str, torch.nn.Linear], skipped: list[str]) -> None:
    left = next((name for name in skipped if name in experts), None)
    if left is not None:
        raise InvalidParameter(
            f"skip_modules leaves out {left}, but the loaders that put a model's experts together want all of them "
            f"quantized; name layers outside the experts, such as self_attn",
            param="method.skip_modules",
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
