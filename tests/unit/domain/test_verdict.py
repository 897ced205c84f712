"""Verdicts from figures that were chosen so that the answer is known."""

from __future__ import annotations

import pytest

from app.domain.artifacts import Measurement
from app.domain.compared import Compared, fronts
from app.domain.verdict import verdict, within_errors


def row(label: str, size: int, rate: float | None, divergence: float, error: float = 0.001, **more: object) -> Compared:
    values: dict[str, object] = {"bits_per_weight": 4.5, "memory_bytes": 2 * size} | more
    return Compared(
        label=label, size_bytes=size, decode_tokens_per_second=rate,
        kl_divergence=Measurement(value=divergence, standard_error=error), **values,  # type: ignore[arg-type]
    )  # fmt: skip


ORIGINAL = row("original", 300_000_000, 100.0, 0.0, 0.0, is_original=True, bits_per_weight=16.0)
BF16 = row("bf16", 270_000_000, 90.0, 0.0001, bits_per_weight=16.0)
SMALL = row("small", 90_000_000, 200.0, 0.09)
CLOSE = row("close", 110_000_000, 180.0, 0.05)
EQUAL = row("equal", 120_000_000, 150.0, 0.0505)
BAD = row("bad", 130_000_000, 100.0, 0.2)


def test_the_verdict_says_what_the_figures_say() -> None:
    sentences = verdict([ORIGINAL, BF16, SMALL, CLOSE, EQUAL, BAD])
    assert sentences == [
        "small is the smallest: 90 MB on disk, 30% of the original's 300 MB.",
        "small decodes fastest: 200 tokens/s at 8 requests at a time, 2.00 times the original's 100.",
        "close is the closest to the original of those below 12 bits per weight: KL divergence 0.0500 ± 0.0010 nats "
        "per token; equal cannot be told from it, the difference lies within the standard errors.",
        "small takes the least memory while it is served: 180 MB, the original 600 MB.",
        "On the Pareto front of size, decode speed and KL divergence: original, bf16, small and close.",
        "equal is dominated by close, which is no larger, no slower and no farther from the original; in KL divergence "
        "the two are within the standard errors.",
        "bad is dominated by close, which is no larger, no slower and no farther from the original.",
    ]


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert verdict([ORIGINAL]) == []
    sentences = verdict([ORIGINAL, row("only", 50, None, 0.1, memory_bytes=None)])
    assert not any("decodes" in sentence or "memory" in sentence or "dominated" in sentence for sentence in sentences)
    assert sentences[0].startswith("only is the smallest")


def test_the_original_may_be_the_fastest() -> None:
    sentences = verdict([ORIGINAL, BF16])
    assert "Nothing decodes faster than the original: 100 tokens/s at 8 requests at a time." in sentences
    assert "KL divergence 0.0001 ± 0.0010 nats per token." in " ".join(sentences)  # all are wide: among all of them


def test_fronts_are_of_what_was_measured() -> None:
    found = fronts([ORIGINAL, SMALL, row("untimed", 80_000_000, None, 0.5)])
    assert found == {
        "size_and_kl_divergence": [True, True, True],
        "speed_and_kl_divergence": [True, True, None],
        "size_speed_and_kl_divergence": [True, True, None],
    }


@pytest.mark.parametrize(("difference", "same"), [(0.0, True), (0.0014, True), (0.0015, False)])
def test_differences_are_held_against_both_standard_errors(difference: float, same: bool) -> None:
    one = Measurement(value=0.05, standard_error=0.001)
    assert within_errors(one, Measurement(value=0.05 + difference, standard_error=0.001)) is same
