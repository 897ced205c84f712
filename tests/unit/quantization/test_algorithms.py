"""GPTQ and SmoothQuant on a layer of eight inputs and six outputs."""

from __future__ import annotations

import pytest
import torch

from workers.quantization.algorithms.gptq import round_with_feedback
from workers.quantization.algorithms.grid import Grid
from workers.quantization.algorithms.smoothquant import smoothing_factors


def a_layer(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (6, 8) and inputs (200, 8) whose channels go together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3, 8, generator=generator)
    inputs = torch.randn(200, 3, generator=generator) @ mixing + 0.1 * torch.randn(200, 8, generator=generator)
    return torch.randn(6, 8, generator=generator), inputs


def grid_of(weight: torch.Tensor, limit: int, groups: int = 1) -> Grid:
    """Symmetric, each row in so many groups."""
    scale = weight.unflatten(1, (groups, -1)).abs().amax(dim=2) / limit
    return Grid(scale, torch.zeros_like(scale), -limit, limit)


def output_error(weight: torch.Tensor, codes: torch.Tensor, grid: Grid, inputs: torch.Tensor) -> float:
    return (inputs @ (weight - grid.restore(codes)).T).square().sum().item()


def test_without_correlation_it_rounds_to_the_nearest() -> None:
    weight, _ = a_layer()
    grid = grid_of(weight, 7)
    for largest_first in (False, True):
        hessian = torch.diag(torch.arange(1.0, 9.0))
        codes = round_with_feedback(weight, hessian, grid, damping=0.01, largest_first=largest_first)
        assert torch.equal(codes, grid.round(weight))


@pytest.mark.parametrize("limit", [1, 7, 127])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("largest_first", [False, True])
def test_with_correlation_the_output_is_closer_than_by_rounding_to_the_nearest(
    limit: int, groups: int, largest_first: bool
) -> None:
    """Over several layers: a column's error may find no good place in a single one."""
    ours, nearest = 0.0, 0.0
    for seed in range(5):
        weight, inputs = a_layer(seed)
        grid = grid_of(weight, limit, groups)
        codes = round_with_feedback(weight, inputs.T @ inputs, grid, damping=0.01, largest_first=largest_first)
        assert codes.abs().max() <= limit
        assert torch.equal(codes, codes.round())
        ours += output_error(weight, codes, grid, inputs)
        nearest += output_error(weight, grid.round(weight), grid, inputs)
    assert ours < 0.8 * nearest


def test_zero_points_move_the_range() -> None:
    weight, inputs = a_layer()
    weight = weight.abs()  # symmetric codes would leave half of the range unused
    scale = weight.amax(dim=1, keepdim=True) / 15
    grid = Grid(scale, torch.full_like(scale, -8), -8, 7)
    codes = round_with_feedback(weight, inputs.T @ inputs, grid, damping=0.01)
    assert (codes.min() <= -7, codes.max()) == (True, 7)
    assert output_error(weight, codes, grid, inputs) < output_error(weight, grid.round(weight), grid, inputs)


def test_many_columns_are_rounded_block_by_block() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(400, 40, generator=generator) @ torch.randn(40, 300, generator=generator)
    weight = torch.randn(5, 300, generator=generator)
    for groups in (1, 5):  # the latter not in step with the blocks
        grid = grid_of(weight, 7, groups)
        codes = round_with_feedback(weight, inputs.T @ inputs, grid, damping=0.01)
        assert output_error(weight, codes, grid, inputs) < 0.5 * output_error(weight, grid.round(weight), grid, inputs)


def test_an_input_that_never_comes_costs_nothing() -> None:
    weight, inputs = a_layer()
    inputs[:, 3] = 0
    codes = round_with_feedback(weight, inputs.T @ inputs, grid_of(weight, 7), damping=0.01)
    assert codes[:, 3].eq(0).all()
    assert codes.isfinite().all()


def test_a_singular_hessian_is_damped_until_it_can_be_inverted() -> None:
    weight, inputs = a_layer()
    one_direction = inputs[:1].repeat(200, 1)
    codes = round_with_feedback(weight, one_direction.T @ one_direction, grid_of(weight, 7), damping=1e-9)
    assert codes.isfinite().all()


def test_smoothing_changes_no_output() -> None:
    weight, inputs = a_layer()
    factors = smoothing_factors(inputs.abs().amax(dim=0), weight.abs().amax(dim=0), 0.5)
    assert torch.allclose((inputs / factors) @ (weight * factors).T, inputs @ weight.T, atol=1e-4)


def test_smoothing_by_half_evens_out_inputs_and_weights() -> None:
    weight, inputs = a_layer()
    inputs[:, 2] *= 100
    factors = smoothing_factors(inputs.abs().amax(dim=0), weight.abs().amax(dim=0), 0.5)
    smooth, scaled = (inputs / factors).abs().amax(dim=0), (weight * factors).abs().amax(dim=0)
    assert torch.allclose(smooth, scaled, rtol=1e-3)


def test_a_silent_channel_is_left_alone() -> None:
    factors = smoothing_factors(torch.tensor([0.0, 4.0]), torch.tensor([3.0, 1.0]), 0.5)
    assert factors.tolist() == [1.0, 2.0]
