"""Quality measures as pure functions of logits.

Perplexity is exp of the mean negative log-likelihood; KL divergence is KL(reference ‖ model) in nats, the
figures that llama-perplexity prints under the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.domain.artifacts import Measurement

Floats = npt.NDArray[np.float64]
LogProbs = npt.NDArray[np.floating[Any]]
Tokens = npt.NDArray[np.int64]


def log_softmax(logits: npt.NDArray[np.floating[Any]]) -> Floats:
    """Log-probabilities, in nats, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_probs: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_probs


def negative_log_likelihood(log_probs: LogProbs, targets: Tokens) -> Floats:
    """Nats per token: (positions, vocabulary) and (positions,) to (positions,)."""
    picked: Floats = -log_probs[np.arange(len(targets)), targets].astype(np.float64)
    return picked


def kl_divergence(reference: LogProbs, model: LogProbs) -> Floats:
    """KL(reference ‖ model) in nats at each position; both (positions, vocabulary)."""
    reference64 = reference.astype(np.float64)
    divergence: Floats = (np.exp(reference64) * (reference64 - model)).sum(axis=-1)
    return divergence


def top1_agreement(reference: LogProbs, model: LogProbs) -> Floats:
    """1.0 where both prefer the same token, else 0.0."""
    return (reference.argmax(axis=-1) == model.argmax(axis=-1)).astype(np.float64)


def mean(values: Floats) -> Measurement:
    """The mean and its standard error, which is 0 for a single value."""
    spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return Measurement(value=float(values.mean()), standard_error=float(spread))


def perplexity(nll: Floats) -> Measurement:
    """exp of the mean; the error is propagated to first order."""
    nats = mean(nll)
    value = float(np.exp(nats.value))
    return Measurement(value=value, standard_error=value * nats.standard_error)


@dataclass(frozen=True)
class PackedLogProbs:
    """Log-probabilities in 16 bits each, scaled per position.

    A step is the position's range / 65535: below a thousandth of a nat.
    """

    codes: npt.NDArray[np.uint16]
    lowest: npt.NDArray[np.float32]
    step: npt.NDArray[np.float32]

    @classmethod
    def pack(cls, log_probs: LogProbs) -> PackedLogProbs:
        lowest = log_probs.min(axis=-1, keepdims=True)
        step = (log_probs.max(axis=-1, keepdims=True) - lowest) / 65535
        step = np.where(step == 0, 1.0, step)  # a uniform distribution has no range
        codes = np.rint((log_probs - lowest) / step).astype(np.uint16)
        return cls(codes, lowest.astype(np.float32), step.astype(np.float32))

    def unpack(self) -> Floats:
        """Renormalized, so that rounding adds no mass."""
        return log_softmax(self.codes.astype(np.float64) * self.step + self.lowest)
