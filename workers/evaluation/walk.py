"""A model over a sample's windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from workers.evaluation.metrics import Floats, log_softmax, negative_log_likelihood
from workers.evaluation.sample import Sample
from workers.evaluation.scorers.base import Scorer
from workers.evaluation.windows import scored

Report = Callable[[float, str], None]


def each_window(scorer: Scorer, sample: Sample, report: Report, stage: str) -> Iterator[tuple[int, Floats, Floats]]:
    """Each window's number, log-probabilities [positions, vocabulary] and surprise in nats [positions].

    Positions are those of the second half.
    """
    positions, _ = scored(sample.windows[0])
    for number, logits in enumerate(scorer.each_logits(sample.windows, positions)):
        report(number / len(sample.windows), stage)
        _, targets = scored(sample.windows[number])
        log_probs = log_softmax(logits)
        yield number, log_probs, negative_log_likelihood(log_probs, targets)
