"""From the states of tokens to vectors of texts."""

from __future__ import annotations

import pytest
import torch

from app.storage.pooling import Mode, Pooling
from workers.serving.embedding.model import pool

STATES = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [100.0, 100.0]], [[0.0, 2.0], [2.0, 0.0], [4.0, 1.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("mean", [[2, 2], [2, 1]]), ("cls", [[1, 0], [0, 2]]), ("lasttoken", [[3, 4], [4, 1]])],
)
def test_padding_does_not_count(mode: Mode, expected: list[list[float]]) -> None:
    assert pool(STATES, MASK, Pooling(mode, normalize=False)).tolist() == expected


def test_vectors_of_length_one() -> None:
    assert pool(STATES, MASK, Pooling("lasttoken", normalize=True))[0].tolist() == pytest.approx([0.6, 0.8])
