"""The band of figures in which a working artifact lies. What lies outside is broken, not merely coarse."""

from __future__ import annotations

from typing import Final

from app.domain.artifacts import QualityCard
from app.domain.errors import QualityGateFailed

MAX_PERPLEXITY_RATIO: Final = 20.0
# Nominal bits per weight, from which on a mean KL divergence (nats per token) is allowed at most. Measured on small
# models, which suffer most, working artifacts stay below a third of these.
MAX_DIVERGENCE: Final = ((7.0, 0.5), (4.0, 2.0), (3.0, 4.0), (0.0, 8.0))
WAY_AROUND: Final = 'or submit with quality {"gate": "off"} to keep it all the same'


def require_sane(card: QualityCard, bits: float) -> None:
    """`bits` are the method's nominal bits per weight. Raises QualityGateFailed, with the figures."""
    if card.perplexity is None or card.kl_divergence is None:
        raise QualityGateFailed(
            f"the artifact's logits are not finite on the sample; try another type, such as bf16 in place of fp16, "
            f"{WAY_AROUND}"
        )
    ratio = card.perplexity.value / card.reference_perplexity.value
    limit = next(limit for least, limit in MAX_DIVERGENCE if bits >= least)
    if ratio > MAX_PERPLEXITY_RATIO or card.kl_divergence.value > limit:
        raise QualityGateFailed(
            f"perplexity went from {card.reference_perplexity.value:.2f} to {card.perplexity.value:.2f} "
            f"({ratio:.1f} times, {MAX_PERPLEXITY_RATIO:g} allowed) with a KL divergence of "
            f"{card.kl_divergence.value:.3f} nats ({limit:g} allowed at {bits:.1f} bits); choose more bits or more "
            f"calibration text, {WAY_AROUND}"
        )
