"""Rounding with feedback, after GPTQ (arXiv:2210.17323).

Columns are rounded one after another; the error of each is spread over those that are not rounded yet, by the
inverse of the Hessian of the layer's squared output error, which is XᵀX up to a factor.
"""

from __future__ import annotations

from typing import Final

import torch

from workers.quantization.algorithms.grid import Grid

COLUMNS_PER_BLOCK: Final = 128
Steps = tuple[torch.Tensor, torch.Tensor]


def round_with_feedback(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, *, damping: float, largest_first: bool = False
) -> torch.Tensor:
    """Integer codes, as floats, of shape (out, in).

    `weight` (out, in), `hessian` (in, in) = XᵀX of the layer's inputs. `damping` is the share of the mean diagonal that
    is added to it; it is raised until the matrix can be inverted. With `largest_first` the columns with the largest
    inputs are rounded first, while there are others left to take their errors; groups stay where they are.
    """
    weight = weight.float().clone()
    weight[:, hessian.diagonal() == 0] = 0  # nothing ever comes in there
    scale, zero_point = grid.of_columns(weight.shape[1])
    if not largest_first:
        return _round_columns(weight, hessian, (scale, zero_point), grid, damping)
    order = hessian.diagonal().argsort(descending=True, stable=True)
    steps = (scale[:, order], zero_point[:, order])
    codes = _round_columns(weight[:, order], hessian[order][:, order], steps, grid, damping)
    return codes[:, order.argsort()]


def _round_columns(
    weight: torch.Tensor, hessian: torch.Tensor, steps: Steps, grid: Grid, damping: float
) -> torch.Tensor:
    """Rounds columns in their order, changing `weight`. `steps` are the scale and zero point of each weight."""
    inverse = _inverse_factor(hessian.float(), damping)
    codes = torch.empty_like(weight)
    for start in range(0, weight.shape[1], COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, weight.shape[1])
        block = slice(start, stop)
        own = (steps[0][:, block], steps[1][:, block])
        errors = _round_block(weight[:, block], inverse[block, block], own, codes[:, block], grid)
        weight[:, stop:] -= errors @ inverse[block, stop:]
    return codes


def _round_block(
    block: torch.Tensor, inverse: torch.Tensor, steps: Steps, codes: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """Rounds the columns of one block into `codes`. Returns each column's error over its pivot, (out, columns)."""
    errors = torch.empty_like(block)
    for column in range(block.shape[1]):
        scale, zero_point = steps[0][:, column], steps[1][:, column]
        code = (block[:, column] / scale + zero_point).round().clamp(grid.lowest, grid.highest)
        error = (block[:, column] - (code - zero_point) * scale) / inverse[column, column]
        block[:, column:] -= error[:, None] * inverse[None, column, column:]
        codes[:, column] = code
        errors[:, column] = error
    return errors


def _inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse. Raises ValueError where it holds NaN or infinity."""
    if not hessian.isfinite().all():
        raise ValueError("the inputs' second moments are not finite")
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    step = damping * diagonal.mean()
    while True:
        diagonal += step
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True)
        step *= 2
