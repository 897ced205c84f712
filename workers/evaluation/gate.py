"""The band of figures in which a working artifact lies. What lies outside is broken, not merely coarse."""

from __future__ import annotations

from typing import Final

import numpy as np

from app.domain.artifacts import Measurement, QualityCard
from app.domain.errors import BrokenSource, QualityGateFailed
from workers.evaluation.metrics import Floats
from workers.evaluation.sample import GENERATED_TOKENS

MAX_PERPLEXITY_RATIO: Final = 20.0
# Nominal bits per weight, from which on a mean KL divergence (nats per token) is allowed at most. Measured on small
# models, which suffer most, working artifacts stay below a third of these.
MAX_DIVERGENCE: Final = ((7.0, 0.5), (4.0, 2.0), (3.0, 4.0), (0.0, 8.0))
WAY_AROUND: Final = 'or submit with quality {"gate": "off"} to keep it all the same'


def require_finite(log_probs: Floats, surprise: Floats) -> None:
    """Of an original. Raises BrokenSource: nothing can be compared with what gives no numbers."""
    if np.isnan(log_probs).any() or not np.isfinite(surprise).all():
        raise BrokenSource(
            "the original's own logits are not finite, so that nothing can be measured against it; its weights are "
            "damaged, or it needs a type with a larger range, such as bfloat16 in place of float16: download it again, "
            "or convert it",
            param="model",
        )


def require_better_than_guessing(perplexity: Measurement, vocabulary: int, sample: str) -> None:
    """Whoever knows nothing gives each of the `vocabulary` tokens the same chance, and so has its size as perplexity.

    Raises BrokenSource. Near such an original any artifact is near, whatever was done to it.
    """
    if perplexity.value >= vocabulary:
        raise BrokenSource(
            f"the original's own perplexity on the text {sample!r} is {perplexity.value:.0f}, no better than that of "
            f"guessing among its {vocabulary} tokens: its weights or its tokenizer are not what they should be, and "
            f"what it is quantized to would be just as broken. Download it again, or look at its answers; for a model "
            f"of something else than text, {WAY_AROUND.removeprefix('or ')}",
            param="model",
        )


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
