"""Windows and which of their tokens are scored."""

from __future__ import annotations

import numpy as np
import pytest

from app.domain.errors import InvalidParameter
from workers.evaluation.windows import cut, scored


def test_windows_follow_each_other_and_the_rest_is_left_out() -> None:
    windows = cut(np.arange(35), length=10, limit=9, bos=None)
    assert [list(window[[0, -1]]) for window in windows] == [[0, 9], [10, 19], [20, 29]]


def test_no_more_windows_than_asked_for() -> None:
    assert len(cut(np.arange(100), length=10, limit=2, bos=None)) == 2


def test_the_first_token_gives_way_to_a_beginning_of_sequence() -> None:
    tokens = np.arange(20) + 5
    windows = cut(tokens, length=10, limit=2, bos=1)
    assert [window[0] for window in windows] == [1, 1]
    assert tokens[0] == 5, "the text itself must not change"


def test_too_little_text_is_refused_with_figures() -> None:
    with pytest.raises(InvalidParameter, match="has 9 tokens, a window needs 10"):
        cut(np.arange(9), length=10, limit=1, bos=None)


def test_the_second_half_is_scored_and_each_position_predicts_the_next() -> None:
    window = np.arange(8)
    positions, targets = scored(window)
    assert list(window[positions]) == [4, 5, 6]
    assert list(targets) == [5, 6, 7]
