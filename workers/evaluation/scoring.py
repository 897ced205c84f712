"""A model's scores at every scored position of a sample, alone and beside the original's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.evaluation.metrics import Floats, kl_divergence, top1_agreement
from workers.evaluation.reference import Reference
from workers.evaluation.sample import Sample
from workers.evaluation.scorers.base import Scorer
from workers.evaluation.walk import Report, each_window


@dataclass(frozen=True)
class Scores:
    """One value per scored position: nats of surprise, KL(reference ‖ model) in nats, and 1.0 for agreement.

    Without a reference the last two are empty.
    """

    nll: Floats
    divergence: Floats
    agreement: Floats


def score(scorer: Scorer, sample: Sample, reference: Reference | None, report: Report) -> Scores:
    """Runs the model over the sample's windows, the second half of each scored."""
    nll: list[Floats] = []
    divergence: list[Floats] = []
    agreement: list[Floats] = []
    for number, log_probs, surprise in each_window(scorer, sample, report, "measuring the artifact"):
        nll.append(surprise)
        if reference is not None:
            original = reference.log_probs(number)
            divergence.append(kl_divergence(original, log_probs))
            agreement.append(top1_agreement(original, log_probs))
    return Scores(np.concatenate(nll), _joined(divergence), _joined(agreement))


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.array([], dtype=np.float64)
