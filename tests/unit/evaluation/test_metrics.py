"""Quality measures with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from workers.evaluation.metrics import (
    PackedLogProbs,
    kl_divergence,
    log_softmax,
    mean,
    negative_log_likelihood,
    perplexity,
    top1_agreement,
)

RANDOM = np.random.default_rng(7)
LOGITS = RANDOM.normal(size=(50, 40)) * 4
TARGETS = RANDOM.integers(0, 40, size=50)


def test_a_uniform_models_perplexity_is_the_size_of_its_vocabulary() -> None:
    nll = negative_log_likelihood(log_softmax(np.zeros((50, 40))), TARGETS)
    assert perplexity(nll).value == pytest.approx(40)


def test_a_model_that_knows_has_perplexity_one() -> None:
    logits = np.zeros((50, 40))
    logits[np.arange(50), TARGETS] = 1000
    assert perplexity(negative_log_likelihood(log_softmax(logits), TARGETS)).value == pytest.approx(1)


def test_a_model_does_not_diverge_from_itself() -> None:
    log_probs = log_softmax(LOGITS)
    assert np.abs(kl_divergence(log_probs, log_probs)).max() == 0
    assert top1_agreement(log_probs, log_probs).min() == 1


def test_divergence_between_two_coins() -> None:
    fair, biased = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert kl_divergence(fair, biased)[0] == pytest.approx(expected)
    assert kl_divergence(biased, fair)[0] != pytest.approx(expected)


def test_large_logits_do_not_overflow() -> None:
    assert np.isfinite(log_softmax(np.array([[1e30, 0.0, -1e30]]))).all()


def test_standard_error_of_a_mean() -> None:
    measured = mean(np.array([1.0, 2.0, 3.0, 4.0]))
    assert measured.value == 2.5
    assert measured.standard_error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)
    assert mean(np.array([5.0])).standard_error == 0


def test_packing_loses_less_than_a_thousandth_of_a_nat() -> None:
    log_probs = log_softmax(LOGITS)
    unpacked = PackedLogProbs.pack(log_probs).unpack()
    assert np.abs(unpacked - log_probs).max() < 1e-3
    assert np.exp(unpacked).sum(axis=-1) == pytest.approx(np.ones(50))


def test_a_uniform_distribution_can_be_packed() -> None:
    log_probs = log_softmax(np.zeros((2, 8)))
    assert PackedLogProbs.pack(log_probs).unpack() == pytest.approx(log_probs)
