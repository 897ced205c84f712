"""HQQ's grids in integers: nearer to the weight than plain ones, and whole for any group."""

from __future__ import annotations

import pytest
import torch

from app.domain.quantization.methods.hqq import HqqParams

pytest.importorskip("hqq", reason="pip install 'bitmill[hqq]'")

from workers.quantization.methods.hqq import NORM, Grid, choose_grid, codes_of, plain_grid

BITS = (2, 3, 4, 8)
GROUP = 32
# The share of plain rounding's error that remains, at most.
MOST_LEFT = {2: 0.9, 3: 0.97, 4: 0.98, 8: 0.99}


def a_weight() -> torch.Tensor:
    """Few weights lie far out, as in a real model."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 128, generator=generator) * 0.02
    return weight + 0.2 * (torch.rand(weight.shape, generator=generator) < 0.01)


def errors(weight: torch.Tensor, grid: Grid, bits: int) -> torch.Tensor:
    """The sum of |error|^NORM of each group: (out, groups)."""
    codes = codes_of(weight, grid, bits).unflatten(1, (-1, GROUP))
    restored = (codes - grid.zero[..., None]) * grid.scale[..., None]
    return (restored - weight.unflatten(1, (-1, GROUP))).abs().pow(NORM).sum(dim=-1)


@pytest.mark.parametrize("bits", BITS)
def test_no_group_is_further_from_the_weight_than_with_plain_rounding(bits: int) -> None:
    weight = a_weight()
    chosen = errors(weight, choose_grid(weight, HqqParams(bits=bits, group_size=GROUP)), bits)
    plain = Grid(*(part.reshape(48, -1) for part in plain_grid(weight.reshape(-1, GROUP), bits)))
    assert (chosen <= errors(weight, plain, bits) * 1.0001).all()
    assert chosen.sum() < errors(weight, plain, bits).sum() * MOST_LEFT[bits]


@pytest.mark.parametrize("bits", BITS)
def test_zero_points_and_codes_fit_their_bits(bits: int) -> None:
    grid = choose_grid(a_weight() - 0.3, HqqParams(bits=bits, group_size=GROUP))
    for values in (grid.zero, codes_of(a_weight() - 0.3, grid, bits)):
        assert torch.equal(values, values.round())
        assert 0 <= values.min() <= values.max() <= 2**bits - 1


def test_groups_on_one_side_of_zero_and_groups_of_zeros_survive() -> None:
    weight = torch.cat([torch.full((32, 32), 0.5), torch.zeros(32, 32)], dim=1)
    grid = choose_grid(weight, HqqParams(bits=4, group_size=GROUP))
    codes = codes_of(weight, grid, 4).unflatten(1, (-1, GROUP))
    restored = ((codes - grid.zero[..., None]) * grid.scale[..., None]).flatten(1)
    assert torch.allclose(restored, weight, atol=1e-3)
