"""What was measured of a contract's candidate, as its terms ask for it: pure functions."""

from __future__ import annotations

import math
from typing import Any

from app.domain.artifacts import Measurement, QualityCard
from app.domain.evaluation import EngineFigures
from app.domain.pareto import flags
from app.persistence.tables import ArtifactRow

Json = dict[str, Any]


def quality_of(row: ArtifactRow) -> Json:
    """From the proof that the artifact was published with, each figure with its standard error.

    That of the perplexity ratio is propagated from the two perplexities as if they were independent, which overstates
    it: both are measured on the same tokens.
    """
    if row.quality is None:
        return {}
    card = QualityCard.model_validate(row.quality)
    found: dict[str, Measurement | None] = {
        "kl_divergence": card.kl_divergence,
        "top1_agreement": card.top1_agreement,
        "perplexity_ratio": _ratio(card.perplexity, card.reference_perplexity) if card.perplexity else None,
    }
    return {name: value.model_dump() for name, value in found.items() if value is not None}


def _ratio(one: Measurement, other: Measurement) -> Measurement:
    value = one.value / other.value
    relative = math.hypot(one.standard_error / one.value, other.standard_error / other.value)
    return Measurement(value=value, standard_error=value * relative)


def serving_of(figures: EngineFigures) -> Json:
    """Memory on the GPU where the engine uses one, and the decode rate of a single request."""
    rates = [speed.decode_tokens_per_second for speed in figures.speed if speed.requests == 1]
    return {
        "memory_bytes": figures.gpu_bytes or figures.resident_bytes,
        "decode_tokens_per_second": rates[0] if rates else None,
    }


def values_of(measured: Json) -> dict[str, float | None]:
    return {name: value["value"] if isinstance(value, dict) else value for name, value in measured.items()}


def frontier(tried: list[Json]) -> list[Json]:
    """The entries with whether they lie on the Pareto front of size and KL divergence, of those that have both."""
    on_front = flags([_point(entry) for entry in tried])
    return [entry | {"on_pareto_front": flag} for entry, flag in zip(tried, on_front, strict=True)]


def _point(entry: Json) -> tuple[float, float] | None:
    values = values_of(entry["measured"])
    size, divergence = values.get("size_bytes"), values.get("kl_divergence")
    return (size, divergence) if size is not None and divergence is not None else None
