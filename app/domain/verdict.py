"""What a comparison found, in sentences that follow from its figures and from nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from app.domain.artifacts import Measurement
from app.domain.compared import ALL_OBJECTIVES, FRONTS, Compared, fronts, point_of
from app.domain.evaluation import COMPARED_REQUESTS
from app.domain.pareto import dominates

# Above it a model is stored at its full width, and its closeness to the original says nothing.
QUANTIZED_BITS: Final = 12.0


def verdict(rows: Sequence[Compared]) -> list[str]:
    """Empty while nothing but the original was measured."""
    made = [row for row in rows if not row.is_original]
    original = next((row for row in rows if row.is_original), None)
    if not any(row.size_bytes is not None for row in made):
        return []
    found = [_smallest(made, original), _fastest(rows, original), _closest(made), _leanest(rows, original)]
    return [sentence for sentence in [*found, _front(rows), *_dominated(rows)] if sentence]


def within_errors(one: Measurement, other: Measurement) -> bool:
    """Whether two figures differ by no more than their standard errors together.

    These are taken as independent, which for models scored on the same tokens overstates the error.
    """
    return abs(one.value - other.value) <= math.hypot(one.standard_error, other.standard_error)


def _smallest(made: Sequence[Compared], original: Compared | None) -> str | None:
    best = min((row for row in made if row.size_bytes), key=lambda row: row.size_bytes or 0, default=None)
    if best is None or not best.size_bytes:
        return None
    whole = original.size_bytes if original else None
    share = f", {best.size_bytes / whole:.0%} of the original's {megabytes(whole)}" if whole else ""
    return f"{best.label} is the smallest: {megabytes(best.size_bytes)} on disk{share}."


def _fastest(rows: Sequence[Compared], original: Compared | None) -> str | None:
    timed = [row for row in rows if row.decode_tokens_per_second]
    if len(timed) < 2:
        return None
    best = max(timed, key=lambda row: row.decode_tokens_per_second or 0.0)
    rate, beside = best.decode_tokens_per_second or 0.0, original.decode_tokens_per_second if original else None
    text = f"{rate:.0f} tokens/s at {COMPARED_REQUESTS} requests at a time"
    if best.is_original:
        return f"Nothing decodes faster than the original: {text}."
    ratio = f", {rate / beside:.2f} times the original's {beside:.0f}" if beside else ""
    return f"{best.label} decodes fastest: {text}{ratio}."


def _closest(made: Sequence[Compared]) -> str | None:
    """Of those that are stored in fewer bits, where there are any."""
    judged = [row for row in made if row.kl_divergence]
    reduced = [row for row in judged if (row.bits_per_weight or 0.0) < QUANTIZED_BITS]
    ranked = sorted(reduced or judged, key=lambda row: row.kl_divergence.value if row.kl_divergence else 0.0)
    best, others = (ranked[0], ranked[1:]) if ranked else (None, [])
    if best is None or best.kl_divergence is None:
        return None
    among = f" of those below {QUANTIZED_BITS:g} bits per weight" if reduced and len(reduced) < len(judged) else ""
    text = f"{best.label} is the closest to the original{among}: KL divergence {nats(best.kl_divergence)} per token"
    equal = [row.label for row in others if row.kl_divergence and within_errors(best.kl_divergence, row.kl_divergence)]
    if not equal:
        return f"{text}."
    return f"{text}; {listed(equal)} cannot be told from it, the difference lies within the standard errors."


def _leanest(rows: Sequence[Compared], original: Compared | None) -> str | None:
    loaded = [row for row in rows if row.memory_bytes]
    if len(loaded) < 2:
        return None
    best = min(loaded, key=lambda row: row.memory_bytes or 0)
    beside = original.memory_bytes if original and not best.is_original else None
    ratio = f", the original {megabytes(beside)}" if beside else ""
    return f"{best.label} takes the least memory while it is served: {megabytes(best.memory_bytes or 0)}{ratio}."


def _front(rows: Sequence[Compared]) -> str | None:
    on = [row.label for row, flag in zip(rows, fronts(rows)[ALL_OBJECTIVES], strict=True) if flag]
    if not on:
        return None
    return f"On the Pareto front of size, decode speed and KL divergence: {listed(on)}."


def _dominated(rows: Sequence[Compared]) -> list[str]:
    objectives = FRONTS[ALL_OBJECTIVES]
    points = [(row, point) for row in rows if (point := point_of(row, objectives)) is not None]
    sentences = []
    for row, point in points:
        better = [other for other, place in points if dominates(place, point)]
        if better:
            best = min(better, key=lambda other: other.kl_divergence.value if other.kl_divergence else 0.0)
            sentences.append(_worse(row, best))
    return sentences


def _worse(row: Compared, better: Compared) -> str:
    text = f"{row.label} is dominated by {better.label}, which is no larger, no slower and no farther from the original"
    if row.kl_divergence and better.kl_divergence and within_errors(row.kl_divergence, better.kl_divergence):
        text += "; in KL divergence the two are within the standard errors"
    return f"{text}."


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def nats(measurement: Measurement) -> str:
    return f"{measurement.value:.4f} ± {measurement.standard_error:.4f} nats"


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
