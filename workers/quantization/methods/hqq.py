"""Streams weights on grids that half-quadratic splitting finds, in GPTQ's layout.

transformers loads no HQQ checkpoint, and the layouts that it loads hold integer zero points, to which rounding
HQQ's own result would lose all that it gained. So the scale is solved for in place of the zero point.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import torch
from hqq.core.optimize import shrink_lp_op

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.methods.hqq import SPEC, HqqParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, QuantizationMethod
from workers.quantization.gptq_layout import PARTS, configuration, pack
from workers.quantization.linears import find_linears
from workers.quantization.streaming import Conversion, Stored, dtype_entry, kept, model_dtype, stream

# HQQ's own figures. The sum of |error|^NORM is made less: below 1, so that a few weights may be far off. The
# weight of the splitting's penalty starts at BETA and grows by KAPPA with each of the STEPS.
NORM: Final = 0.7
BETA: Final = 10.0
KAPPA: Final = 1.01
STEPS: Final = 20


class Grid(NamedTuple):
    """Per group, of shape (groups, 1): a code q, from 0 on, stands for (q - zero) · scale."""

    scale: torch.Tensor
    zero: torch.Tensor


class HqqMethod(QuantizationMethod[HqqParams]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: HqqParams, run: JobRun) -> QuantizationReport:
        linears = find_linears(source, params.skip_modules)
        dtype = model_dtype(source)

        def convert(name: str, tensor: torch.Tensor) -> Stored:
            module = linears.module_of(name)
            if module is None:
                return kept(name, tensor, dtype)
            grid = choose_grid(tensor.float(), params)
            parts = pack(module, codes_of(tensor.float(), grid, params.bits), *grid, params.bits)
            return Stored(f"INT{params.bits}", [(f"{module}.{part}", value) for part, value in parts.items()])

        conversion = Conversion(f"quantizing to {params.bits} bits", convert, _part_names)
        entry = configuration(params.bits, params.group_size, linears.skipped if params.skip_modules else [])
        return stream(source, target, conversion, {**dtype_entry(dtype), "quantization_config": entry}, run)


def _part_names(name: str) -> list[str]:
    return [name, *(name.removesuffix("weight") + part for part in PARTS)]


def choose_grid(weight: torch.Tensor, params: HqqParams) -> Grid:
    """A grid of shape (out, groups) for a weight (out, in): each group's best of all that the splitting passes."""
    groups = weight.reshape(-1, params.group_size)
    grid = best = plain_grid(groups, params.bits)
    least = _errors(groups, best, params.bits)
    beta = BETA
    for _ in range(STEPS):
        grid = _next_grid(groups, grid, params.bits, beta)
        errors = _errors(groups, grid, params.bits)
        better = errors < least
        best = Grid(*(torch.where(better, new, old) for new, old in zip(grid, best, strict=True)))
        least = torch.minimum(errors, least)
        beta *= KAPPA
    return Grid(*(part.reshape(weight.shape[0], -1) for part in best))


def _next_grid(groups: torch.Tensor, grid: Grid, bits: int, beta: float) -> Grid:
    """One step: shrink the errors, then the zero point and the least-squares scale for what is left."""
    codes = codes_of(groups, grid, bits)
    errors = shrink_lp_op(groups - (codes - grid.zero) * grid.scale, beta, NORM)
    aim = groups - errors
    zero = (codes - aim / grid.scale).mean(dim=1, keepdim=True).round().clamp(0, 2**bits - 1)
    steps = codes - zero
    scale = (aim * steps).sum(dim=1, keepdim=True) / steps.square().sum(dim=1, keepdim=True).clamp(min=1)
    return _stored(scale, zero)


def codes_of(weight: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    """The nearest codes, of the weight's shape (rows, columns), on a grid (rows, groups)."""
    groups = weight.unflatten(1, (grid.scale.shape[1], -1))
    codes = (groups / grid.scale[..., None] + grid.zero[..., None]).round().clamp(0, 2**bits - 1)
    return codes.flatten(1)


def plain_grid(groups: torch.Tensor, bits: int) -> Grid:
    """From the least to the greatest value of each group, with nought between them."""
    low = groups.amin(dim=1, keepdim=True).clamp(max=0)
    high = groups.amax(dim=1, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return _stored(scale, (-low / scale).round())


def _stored(scale: torch.Tensor, zero: torch.Tensor) -> Grid:
    """Scales as the layout keeps them, in 16 bits, of which none may vanish."""
    smallest = torch.finfo(torch.float16).smallest_normal
    return Grid(scale.clamp(min=smallest).half().float(), zero.float())


def _errors(groups: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    """The sum of |error|^NORM over each group: (groups, 1)."""
    restored = (codes_of(groups, grid, bits) - grid.zero) * grid.scale
    return (restored - groups).abs().pow(NORM).sum(dim=1, keepdim=True)
