"""Rounding with feedback, after GPTQ (arXiv:2210.17323).

Columns are rounded one after another; the error of each is spread over those that are not rounded yet, by the
inverse of the Hessian of the layer's squared output error, which is XᵀX up to a factor.
"""

from __future__ import annotations

from typing import Final

import torch

COLUMNS_PER_BLOCK: Final = 128


def round_with_feedback(
    weight: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, *, limit: int, damping: float
) -> torch.Tensor:
    """Integer codes, as floats, of shape (out, in) within ±limit.

    `weight` (out, in), `hessian` (in, in) = XᵀX of the layer's inputs, `scale` (out, 1). `damping` is the share of
    the mean diagonal that is added to it; it is raised until the matrix can be inverted.
    """
    weight = weight.float().clone()
    dead = hessian.diagonal() == 0
    weight[:, dead] = 0  # nothing ever comes in there
    inverse = _inverse_factor(hessian.float(), damping)
    codes = torch.empty_like(weight)
    for start in range(0, weight.shape[1], COLUMNS_PER_BLOCK):
        stop = min(start + COLUMNS_PER_BLOCK, weight.shape[1])
        block = slice(start, stop)
        errors = _round_block(weight[:, block], inverse[block, block], scale, codes[:, block], limit)
        weight[:, stop:] -= errors @ inverse[block, stop:]
    return codes


def _round_block(
    block: torch.Tensor, inverse: torch.Tensor, scale: torch.Tensor, codes: torch.Tensor, limit: int
) -> torch.Tensor:
    """Rounds the columns of one block into `codes`. Returns each column's error over its pivot, (out, columns)."""
    errors = torch.empty_like(block)
    for column in range(block.shape[1]):
        codes[:, column] = (block[:, column] / scale[:, 0]).round().clamp(-limit, limit)
        error = (block[:, column] - codes[:, column] * scale[:, 0]) / inverse[column, column]
        block[:, column:] -= error[:, None] * inverse[None, column, column:]
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
