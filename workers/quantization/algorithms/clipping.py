"""AWQ's search for the bound at which each group of weights is clipped before it is rounded (arXiv:2306.00978).

A group's share of its row's output error is Δᵀ(XᵀX)Δ, with Δ what clipping and rounding change and X the group's
inputs. The second moments XᵀX are computed once; trying a bound then costs a small matrix product and no pass over
the tokens, and no token has to be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

ROWS_PER_PASS: Final = 1024
TOKENS_PER_PASS: Final = 4096

Rounding = Callable[[torch.Tensor], torch.Tensor]


def best_bounds(
    weight: torch.Tensor, moments: torch.Tensor, round_groups: Rounding, *, steps: int, least: float
) -> torch.Tensor:
    """The bound of each group's absolute values with the least output error, (out, groups, 1), in the weight's type.

    `weight` is (out, in), `moments` (groups, group size, group size). `round_groups` quantizes and restores (rows,
    groups, group size). The bounds tried are a group's greatest absolute value times `steps` factors from 1 down to
    above `least`.
    """
    groups = weight.float().unflatten(1, (moments.shape[0], -1))
    found = [_best_of(rows, moments, round_groups, steps, least) for rows in groups.split(ROWS_PER_PASS)]
    return torch.cat(found).to(weight.dtype)


def second_moments(inputs: torch.Tensor, group_size: int, device: torch.device) -> torch.Tensor:
    """XᵀX of each group of the inputs' (tokens, in) columns: (groups, group size, group size), float32."""
    moments = torch.zeros(inputs.shape[1] // group_size, group_size, group_size, device=device)
    for tokens in inputs.split(TOKENS_PER_PASS):
        grouped = tokens.to(device).float().unflatten(1, (-1, group_size)).transpose(0, 1)
        moments += grouped.transpose(1, 2) @ grouped
    return moments


def moments_of_groups(hessian: torch.Tensor, group_size: int) -> torch.Tensor:
    """The same out of the second moments of all columns, (in, in): its blocks on the diagonal."""
    blocks = hessian.unflatten(0, (-1, group_size)).unflatten(2, (-1, group_size))
    return blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0).contiguous()


def _best_of(
    groups: torch.Tensor, moments: torch.Tensor, round_groups: Rounding, steps: int, least: float
) -> torch.Tensor:
    greatest = groups.abs().amax(dim=-1, keepdim=True)
    best = greatest.clone()
    smallest_error = torch.full_like(greatest, torch.inf)
    for step in range(steps):
        bound = greatest * (1 - step * (1 - least) / steps)
        change = (round_groups(groups.clamp(-bound, bound)) - groups).transpose(0, 1)
        error = ((change @ moments) * change).sum(dim=-1).T[..., None]
        better = error < smallest_error
        smallest_error = torch.where(better, error, smallest_error)
        best = torch.where(better, bound, best)
    return best
