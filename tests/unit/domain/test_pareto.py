"""Fronts with known answers."""

from __future__ import annotations

import pytest

from app.domain.pareto import Point, dominates, pareto_front


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(3.0, 3.0)], [True]),
        ([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], [True, True, True]),
        ([(1.0, 1.0), (2.0, 2.0), (1.0, 2.0)], [True, False, False]),
        # Equal points do not beat each other, and both fall to a third.
        ([(1.0, 1.0), (1.0, 1.0)], [True, True]),
        ([(2.0, 2.0), (2.0, 2.0), (1.0, 2.0)], [False, False, True]),
        # Better in the third coordinate alone is enough to stay.
        ([(1.0, 1.0, 5.0), (2.0, 2.0, 4.0), (2.0, 2.0, 6.0)], [True, True, False]),
    ],
)
def test_the_front_is_what_nothing_beats(points: list[Point], front: list[bool]) -> None:
    assert pareto_front(points) == front


def test_a_point_does_not_dominate_itself() -> None:
    assert not dominates((1.0, 2.0), (1.0, 2.0))
    assert dominates((1.0, 2.0), (1.0, 2.5))
    assert not dominates((1.0, 2.6), (1.1, 2.5))
