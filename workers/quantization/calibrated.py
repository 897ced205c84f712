"""Integer weights that were calibrated: SmoothQuant's scaling, then GPTQ's rounding, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import torch

from app.domain.errors import IncompatibleModel
from workers.quantization.algorithms.clipping import best_bounds, moments_of_groups
from workers.quantization.algorithms.gptq import round_with_feedback
from workers.quantization.algorithms.grid import Grid
from workers.quantization.algorithms.smoothquant import smoothing_factors
from workers.quantization.linears import Linears
from workers.quantization.sequential import Outcome, Tensors, replaced

EXAMPLE_ROWS: Final = 8
# As AWQ does: the bounds tried go down to half of a group's greatest weight.
CLIPPING_STEPS: Final = 10
LEAST_BOUND: Final = 0.5
# Norms multiply by their weight, or by one more than it.
NORM_OFFSETS: Final = (0.0, 1.0)
T = TypeVar("T")


@dataclass(frozen=True)
class NormExample:
    """A norm's module and what it made of a few rows."""

    name: str
    given: torch.Tensor
    made: torch.Tensor


@dataclass
class Inputs:
    """What came into the Linear layers that share one input of `width` channels.

    `norm` is the module that gives it, with an example of what it does; None where something else gives it, or
    somebody else reads it too.
    """

    width: int
    device: torch.device
    norm: NormExample | None
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
        self._norms: list[tuple[torch.Tensor, NormExample]] = []
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

    def _on_norm(self, name: str) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def note(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            given, made = (tensor.flatten(0, -2)[:EXAMPLE_ROWS].clone() for tensor in (inputs[0], output))
            self._norms.append((output, NormExample(name, given, made)))

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


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How weights are rounded.

    `smoothing` is how much of the inputs' outliers they take over before (SmoothQuant's strength). Groups of
    `clipped_groups` weights are clipped where that brings the outputs closer.
    """

    algorithm: Literal["rtn", "gptq"]
    damping: float
    largest_first: bool = False
    smoothing: float = 0.0
    clipped_groups: int | None = None


class LayerQuantizer:
    """Called by LayerWalk for each layer; a Linear becomes codes (int8), scales and zero points.

    `grid_of` gives the values that a weight (out, in) may take, `weights` a tensor of the original by its full name.
    """

    def __init__(
        self, rounding: Rounding, grid_of: Callable[[torch.Tensor], Grid], linears: Linears, weights: Any
    ) -> None:
        self.rounding = rounding
        self.grid_of = grid_of
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
        if not group.hessian.isfinite().all():
            raise IncompatibleModel(
                f"the inputs of {name}.{group.linears[0]} are not finite on the calibration text; the model cannot be "
                f"calibrated. Check its weights, or choose a method that needs no data",
                param="model",
            )
        matrices = {short: self.weights[f"{name}.{short}.weight"].to(group.device) for short in group.linears}
        if self.rounding.smoothing and group.norm is not None:
            self._smooth(name, layer, group, matrices, stored, standing_in)
        for short, matrix in matrices.items():
            grid = self._grid(matrix, group.hessian)
            codes = self._round(matrix, group.hessian, grid)
            weight = f"{name}.{short}.weight"
            stored[weight] = codes.to(torch.int8).cpu()
            stored[f"{weight}_scale"], stored[f"{weight}_zero_point"] = grid.scale.cpu(), grid.zero_point.cpu()
            standing_in[weight] = grid.restore(codes).cpu()

    def _grid(self, matrix: torch.Tensor, hessian: torch.Tensor) -> Grid:
        size = self.rounding.clipped_groups
        if size is None:
            return self.grid_of(matrix)

        def round_groups(groups: torch.Tensor) -> torch.Tensor:
            rows = groups.flatten(1)
            grid = self.grid_of(rows)
            return grid.restore(grid.round(rows)).unflatten(1, (-1, size))

        moments = moments_of_groups(hessian, size)
        bounds = best_bounds(matrix, moments, round_groups, steps=CLIPPING_STEPS, least=LEAST_BOUND)
        groups = matrix.unflatten(1, (-1, size))
        return self.grid_of(groups.clamp(-bounds, bounds).flatten(1))

    def _smooth(
        self, name: str, layer: Any, group: Inputs, matrices: Tensors, stored: Tensors, standing_in: Tensors
    ) -> None:
        """Divides the inputs in the norm that gives them, and scales the matrices' columns in return.

        Leaves both alone where no weight makes the norm do that: one with a bias, say.
        """
        assert group.norm is not None  # noqa: S101 -- the caller has looked
        columns = torch.stack([matrix.abs().amax(dim=0) for matrix in matrices.values()]).amax(dim=0)
        factors = smoothing_factors(group.largest, columns, self.rounding.smoothing)
        weight = f"{name}.{group.norm.name}.weight"
        folded = self._fold(layer.get_submodule(group.norm.name), weight, group.norm, factors)
        if folded is None:
            return
        stored[weight] = standing_in[weight] = folded
        for short in matrices:
            matrices[short] = matrices[short] * factors
        group.hessian /= factors[:, None] * factors[None, :]

    def _fold(self, norm: Any, weight: str, example: NormExample, factors: torch.Tensor) -> torch.Tensor | None:
        """The norm's weight with the division built in, if one of the known kinds of norm is seen to do it."""
        original, divisors = self.weights[weight].float(), factors.cpu()
        for offset in NORM_OFFSETS:
            folded = (original + offset) / divisors - offset
            with replaced(self.weights, {weight: folded}):
                made = norm(example.given)
            if torch.allclose(made * factors, example.made, rtol=1e-3, atol=1e-5):
                return folded
        return None

    def _round(self, matrix: torch.Tensor, hessian: torch.Tensor, grid: Grid) -> torch.Tensor:
        if self.rounding.algorithm == "rtn":
            return grid.round(matrix)
        return round_with_feedback(
            matrix, hessian, grid, damping=self.rounding.damping, largest_first=self.rounding.largest_first
        )
