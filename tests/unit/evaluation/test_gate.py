"""The band of a working artifact."""

from __future__ import annotations

import pytest

from app.domain.artifacts import Measurement, QualityCard
from app.domain.errors import QualityGateFailed
from workers.evaluation.gate import require_sane


def card(perplexity: float | None, divergence: float | None) -> QualityCard:
    def measured(value: float | None) -> Measurement | None:
        return None if value is None else Measurement(value=value, standard_error=0.1)

    return QualityCard(
        dataset="builtin",
        dataset_sha256="0" * 64,
        context_length=64,
        scored_tokens=62,
        perplexity=measured(perplexity),
        reference_perplexity=Measurement(value=10.0, standard_error=0.1),
        kl_divergence=measured(divergence),
        kl_divergence_p99=divergence,
        top1_agreement=Measurement(value=0.9, standard_error=0.01),
        generated_text="Paris",
    )


def test_a_working_artifact_passes() -> None:
    require_sane(card(12.0, 0.2), 4.5)
    require_sane(card(60.0, 3.0), 2.1)


@pytest.mark.parametrize(
    ("perplexity", "divergence", "bits", "text"),
    [
        (None, None, 4.5, "not finite"),
        (12.0, 0.6, 8.0, "0.600 nats"),
        (12.0, 2.5, 4.5, "2 allowed at 4.5 bits"),
        (250.0, 0.3, 4.5, "25.0 times"),
    ],
)
def test_a_broken_one_fails_with_its_figures_and_the_way_around(
    perplexity: float | None, divergence: float | None, bits: float, text: str
) -> None:
    with pytest.raises(QualityGateFailed) as caught:
        require_sane(card(perplexity, divergence), bits)
    assert text in caught.value.message
    assert '"gate": "off"' in caught.value.message
