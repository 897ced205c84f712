"""Weights of 32 bits, stored in 16."""

from __future__ import annotations

import torch

from workers.training.rounding import to_bfloat16

STEP = 2.0**-7  # between 1 and 2


def test_what_bfloat16_holds_stays_as_it_is() -> None:
    exact = torch.randn(64, 8).to(torch.bfloat16)
    for given in (exact.float(), -exact.float(), torch.zeros(3), torch.tensor([torch.finfo(torch.bfloat16).max])):
        assert torch.equal(to_bfloat16("w", given).float(), given)


def test_a_change_of_less_than_half_a_step_is_kept_on_average() -> None:
    for sign in (1.0, -1.0):
        for share in (0.02, 0.3, 0.9):
            given = torch.full((200_000,), sign * (1 + share * STEP))
            rounded = to_bfloat16("w", given).float()
            assert set(rounded.tolist()) == {sign, sign * (1 + STEP)}
            assert abs(rounded.mean() - sign * (1 + share * STEP)) < 0.01 * STEP
    assert torch.full((1,), 1 + 0.3 * STEP).to(torch.bfloat16) == 1  # to the nearest it would be lost


def test_the_same_weights_are_rounded_the_same_way() -> None:
    weights = torch.randn(32, 32)
    assert torch.equal(to_bfloat16("a", weights), to_bfloat16("a", weights))
    assert not torch.equal(to_bfloat16("a", weights), to_bfloat16("b", weights))
