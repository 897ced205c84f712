"""The band of figures in which a working artifact lies. What lies outside is broken, not merely coarse."""

from __future__ import annotations

from typing import Final

from app.domain.artifacts import QualityCard
from app.domain.errors import QualityGateFailed
from workers.evaluation.sample import GENERATED_TOKENS

MAX_PERPLEXITY_RATIO: Final = 20.0
# Nominal bits per weight, from which on a mean KL divergence (nats per token) is allowed at most. Measured on small
# models, which suffer most, working artifacts stay below a third of these.
MAX_DIVERGENCE: Final = ((7.0, 0.5), (4.0, 2.0), (3.0, 4.0), (0.0, 8.0))
WAY_AROUND: Final = 'or submit with quality {"gate": "off"} to keep it all the same'


def require_sane(card: QualityCard, bits: float | None) -> None:
    """`bits` are the method's nominal bits per weight, if known. Raises QualityGateFailed, with the figures."""
    if card.perplexity is None or card.kl_divergence is None:
        raise QualityGateFailed(
            f"the artifact's logits are not finite on the sample; try another type, such as bf16 in place of fp16, "
            f"{WAY_AROUND}"
        )
    ratio = card.perplexity.value / card.reference_perplexity.value
    limit = next(limit for least, limit in MAX_DIVERGENCE if (bits or 0.0) >= least)
    if ratio > MAX_PERPLEXITY_RATIO or card.kl_divergence.value > limit:
        raise QualityGateFailed(
            f"perplexity went from {card.reference_perplexity.value:.2f} to {card.perplexity.value:.2f} "
            f"({ratio:.1f} times, {MAX_PERPLEXITY_RATIO:g} allowed) with a KL divergence of "
            f"{card.kl_divergence.value:.3f} nats ({limit:g} allowed at {bits or 0:.1f} bits); choose more bits or "
            f"more calibration text, {WAY_AROUND}"
        )


def require_answer(made: list[int], original: list[int], text: str) -> None:
    """Compares greedy continuations of one prompt, as token ids. Raises QualityGateFailed."""
    if _is_loop(made) and not _is_loop(original):
        raise QualityGateFailed(
            f"the artifact repeats one token ({text[:40]!r}) where the original does not; choose more bits, "
            f"{WAY_AROUND}"
        )
    if original and not made:
        raise QualityGateFailed(
            f"the artifact ends its answer before the first word, the original does not; choose more bits, {WAY_AROUND}"
        )


def _is_loop(tokens: list[int]) -> bool:
    return len(tokens) >= GENERATED_TOKENS and len(set(tokens)) == 1
