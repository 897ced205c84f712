"""The rows of a comparison as figures: which of them lie on a Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from app.domain.artifacts import Measurement
from app.domain.pareto import Point, flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One model's figures, as far as they were measured. The original's KL divergence from itself is 0.

    `memory_bytes` are the serving engine's, on the GPU where it has one. Rates are in tokens per second, at 8 requests
    at a time.
    """

    label: str
    is_original: bool = False
    bits_per_weight: float | None = None
    size_bytes: int | None = None
    memory_bytes: int | None = None
    kl_divergence: Measurement | None = None
    decode_tokens_per_second: float | None = None


Objective = Callable[[Compared], float | None]


def size(row: Compared) -> float | None:
    return row.size_bytes


def loss(row: Compared) -> float | None:
    return row.kl_divergence.value if row.kl_divergence else None


def slowness(row: Compared) -> float | None:
    rate = row.decode_tokens_per_second
    return -rate if rate is not None else None


# What is to be small in each front.
FRONTS: Final[dict[str, tuple[Objective, ...]]] = {
    "size_and_kl_divergence": (size, loss),
    "speed_and_kl_divergence": (slowness, loss),
    "size_speed_and_kl_divergence": (size, slowness, loss),
}
ALL_OBJECTIVES: Final = "size_speed_and_kl_divergence"


def fronts(rows: Sequence[Compared]) -> dict[str, list[bool | None]]:
    """For each front and row whether the row lies on it; None where one of the figures was not measured."""
    return {name: flags([point_of(row, objectives) for row in rows]) for name, objectives in FRONTS.items()}


def point_of(row: Compared, objectives: tuple[Objective, ...]) -> Point | None:
    values = [objective(row) for objective in objectives]
    return tuple(value for value in values if value is not None) if None not in values else None
