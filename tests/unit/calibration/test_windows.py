"""Windows of token ids: drawn by a seed, never twice, never padded."""

from __future__ import annotations

import numpy as np
import pytest

from app.domain.errors import InvalidParameter
from app.domain.quantization.calibration import CalibrationParams
from workers.calibration.windows import choose_windows


def params(**values: int) -> CalibrationParams:
    return CalibrationParams(**({"samples": 3, "sequence_length": 8, "seed": 0} | values))  # type: ignore[arg-type]


def test_windows_are_pieces_of_the_text_that_do_not_overlap() -> None:
    chosen = choose_windows(np.arange(100), params())
    assert chosen.windows.shape == (3, 8)
    assert all((np.diff(window) == 1).all() for window in chosen.windows)
    assert len(np.unique(chosen.windows)) == 24


def test_a_seed_always_draws_the_same() -> None:
    first, again = (choose_windows(np.arange(1000), params(seed=5)) for _ in range(2))
    other = choose_windows(np.arange(1000), params(seed=6))
    assert np.array_equal(first.windows, again.windows)
    assert first.record == again.record
    assert first.record.sha256 != other.record.sha256


def test_too_little_text_is_an_error_with_the_numbers() -> None:
    with pytest.raises(InvalidParameter, match=r"has 23 tokens, which make 2 windows of 8; 3 were asked for") as caught:
        choose_windows(np.arange(23), params())
    assert caught.value.param == "method.calibration.samples"
