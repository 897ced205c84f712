"""Which of several compromises are worth having: those that no other one beats in everything."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, ...]


def dominates(one: Point, other: Point) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better; smaller is better in every coordinate."""
    pairs = list(zip(one, other, strict=True))
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def pareto_front(points: Sequence[Point]) -> list[bool]:
    """For each point whether no other dominates it. Equal points do not dominate each other: both may be on it."""
    return [not any(dominates(other, point) for other in points) for point in points]


def flags(points: Sequence[Point | None]) -> list[bool | None]:
    """For each point whether it lies on the front of those that are known; None for one that is not."""
    found = iter(pareto_front([point for point in points if point is not None]))
    return [None if point is None else next(found) for point in points]
