"""INT8 weights that were calibrated: SmoothQuant's scaling, then GPTQ's rounding, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import torch

from app.domain.quantization.methods.int8 import Int8Params
from workers.quantization.algorithms.gptq import round_with_feedback
from workers.quantization.algorithms.smoothquant import smoothing_factors
from workers.quantization.linears import Linears
from workers.quantization.sequential import Outcome, Tensors

LIMIT: Final = 127
T = TypeVar("T")


@dataclass
class Inputs:
    """What came into the Linear layers that share one input of `width` channels.

    `norm` is the module that gives it; None where something else does, or somebody else reads it too.
    """

    width: int
    device: torch.device
    norm: str | None
    linears: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.largest = torch.zeros(self.width, device=self.device)
        self.hessian = torch.zeros(self.width, self.width, device=self.device)

    def add(self, inputs: torch.Tensor) -> None:
        rows = inputs.reshape(-1, self.width).float()
        self.largest = torch.maximum(self.largest, rows.abs().amax(dim=0))
        self.hessian += rows.T @ rows


class Observer:
    """Watches one layer run: which Linear layers share an input, which norm gives it, and what it is.

    Tensors are told apart by their memory, so each is held until the pass ends: freed memory would be used again.
    """

    def __init__(self, layer: Any, wanted: set[str]) -> None:
        self.wanted = wanted
        self._group_of: dict[str, Inputs] = {}
        self._norms: list[tuple[torch.Tensor, str]] = []
        self._inputs: list[tuple[torch.Tensor, Inputs]] = []
        self._handles = [layer.register_forward_pre_hook(self._on_pass)]
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                self._handles.append(module.register_forward_pre_hook(self._on_linear(name)))
            elif _is_norm(module):
                self._handles.append(module.register_forward_hook(self._on_norm(name)))

    @property
    def groups(self) -> list[Inputs]:
        found = {id(group): group for group in self._group_of.values() if group.linears}
        return list(found.values())

    def close(self) -> None:
        self._on_pass()
        for handle in self._handles:
            handle.remove()

    def _on_pass(self, *_: object) -> None:
        self._norms.clear()
        self._inputs.clear()

    def _on_norm(self, name: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def note(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            self._norms.append((output, name))

        return note

    def _on_linear(self, name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def note(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            group = _found(inputs[0], self._inputs)
            if group is None:
                group = self._group_of.get(name) or self._start(inputs[0])
                group.add(inputs[0])
                self._inputs.append((inputs[0], group))
            self._join(name, group)

        return note

    def _start(self, inputs: torch.Tensor) -> Inputs:
        return Inputs(inputs.shape[-1], inputs.device, norm=_found(inputs, self._norms))

    def _join(self, name: str, group: Inputs) -> None:
        if name in self._group_of:
            return
        self._group_of[name] = group
        if name in self.wanted:
            group.linears.append(name)
        else:
            group.norm = None  # this one would read what the norm no longer gives


def _found(tensor: torch.Tensor, known: list[tuple[torch.Tensor, T]]) -> T | None:
    return next((value for other, value in known if other.data_ptr() == tensor.data_ptr()), None)


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return type(module).__name__.endswith("Norm") and isinstance(weight, torch.Tensor) and weight.dim() == 1


class LayerQuantizer:
    """Called by LayerWalk for each layer. `weights` gives a tensor of the original by its full name."""

    def __init__(self, params: Int8Params, linears: Linears, weights: Any) -> None:
        self.params = params
        self.linears = linears
        self.weights = weights

    def __call__(self, name: str, layer: Any, run_layer: Callable[[], object]) -> Outcome:
        wanted = {short for short, _ in layer.named_modules() if f"{name}.{short}" in self.linears.quantized}
        observer = Observer(layer, wanted)
        run_layer()
        observer.close()
        stored: Tensors = {}
        standing_in: Tensors = {}
        for group in observer.groups:
            self._quantize_group(name, layer, group, stored, standing_in)
        return stored, standing_in

    def _quantize_group(self, name: str, layer: Any, group: Inputs, stored: Tensors, standing_in: Tensors) -> None:
        matrices = {short: self.weights[f"{name}.{short}.weight"].to(group.device) for short in group.linears}
        if self.params.smoothing and group.norm is not None:
            factors = self._smooth(group, matrices)
            scaled = _fold(layer.get_submodule(group.norm), self.weights[f"{name}.{group.norm}.weight"], factors)
            stored[f"{name}.{group.norm}.weight"] = standing_in[f"{name}.{group.norm}.weight"] = scaled
        for short, matrix in matrices.items():
            scale = matrix.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / LIMIT
            codes = self._round(matrix, group.hessian, scale)
            stored[f"{name}.{short}.weight"] = codes.to(torch.int8).cpu()
            stored[f"{name}.{short}.weight_scale"] = scale.cpu()
            standing_in[f"{name}.{short}.weight"] = (codes * scale).cpu()

    def _smooth(self, group: Inputs, matrices: Tensors) -> torch.Tensor:
        """Scales the matrices' columns, and what was seen of their inputs, in place."""
        columns = torch.stack([matrix.abs().amax(dim=0) for matrix in matrices.values()]).amax(dim=0)
        factors = smoothing_factors(group.largest, columns, self.params.smoothing)
        for short in matrices:
            matrices[short] = matrices[short] * factors
        group.hessian /= factors[:, None] * factors[None, :]
        return factors

    def _round(self, matrix: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if self.params.algorithm == "rtn":
            return (matrix / scale).round().clamp(-LIMIT, LIMIT)
        return round_with_feedback(matrix, hessian, scale, limit=LIMIT, damping=self.params.damping)


def _fold(norm: Any, weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The norm's weight with the division built in. Gemma's norms multiply by one more than their weight."""
    offset = 1.0 if "Gemma" in type(norm).__name__ else 0.0
    return (weight.float() + offset) / factors.cpu() - offset
