"""Casting on tiny tensors."""

from __future__ import annotations

import pytest
import torch

from app.domain.errors import IncompatibleModel
from workers.quantization.casting import cast


def test_a_cast_rounds_to_the_target_type() -> None:
    assert torch.equal(cast("w", torch.tensor([1.0, 1.0009765]), torch.float16), torch.tensor([1.0, 1.001]).half())


def test_integers_are_left_alone() -> None:
    positions = torch.arange(4)
    assert cast("positions", positions, torch.float16) is positions


def test_a_weight_beyond_the_range_is_named() -> None:
    with pytest.raises(IncompatibleModel, match=r"layers\.3\.weight holds 70000.*65504"):
        cast("layers.3.weight", torch.tensor([1.0, -70000.0]), torch.float16)


def test_the_largest_value_still_fits() -> None:
    assert cast("w", torch.tensor([65504.0]), torch.float16).item() == 65504


def test_an_infinity_that_was_there_before_is_not_the_casts_fault() -> None:
    assert cast("w", torch.tensor([float("-inf")]), torch.float16).isinf().all()


def test_an_empty_tensor_can_be_cast() -> None:
    assert cast("w", torch.empty(0, 4), torch.float16).shape == (0, 4)
