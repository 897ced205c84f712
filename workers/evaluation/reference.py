"""The original's log-probabilities on a sample: computed once, kept, and shared by every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from app.storage.checkpoints import Checkpoint
from workers.evaluation.gate import require_finite
from workers.evaluation.metrics import Floats, PackedLogProbs
from workers.evaluation.sample import GENERATED_TOKENS, Sample
from workers.evaluation.scorers.opening import open_checkpoint
from workers.evaluation.walk import Report, each_window
from workers.stages import StageStore


@dataclass(frozen=True)
class Reference:
    """One file of packed log-probabilities per window, every scored token's likelihood, and an answer's tokens.

    `vocabulary` is the number of tokens that the model chooses from.
    """

    folder: Path
    nll: Floats
    generated: list[int]

    @property
    def vocabulary(self) -> int:
        return self.log_probs(0).shape[1]

    def log_probs(self, window: int) -> Floats:
        """Log-probabilities (positions, vocabulary) of one window."""
        with np.load(self.folder / f"{window}.npz") as stored:
            return PackedLogProbs(stored["codes"], stored["lowest"], stored["step"]).unpack()


def load_reference(
    checkpoint: Checkpoint, fingerprint: str, sample: Sample, stages: StageStore, report: Report
) -> Reference:
    """Computes the reference, or takes the one that an earlier job did. Raises BrokenSource."""
    folder = stages.get("reference", _recipe(fingerprint, sample), partial(_compute, checkpoint, sample, report))
    return Reference(folder, np.load(folder / "nll.npy"), np.load(folder / "generated.npy").tolist())


def _recipe(fingerprint: str, sample: Sample) -> dict[str, Any]:
    return {
        "source": fingerprint,
        "prompt": sample.prompt.tolist(),
        "windows": [window.tolist() for window in sample.windows],
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def _compute(checkpoint: Checkpoint, sample: Sample, report: Report, folder: Path) -> None:
    likelihoods = []
    report(0.0, "loading the original")
    with open_checkpoint(checkpoint) as scorer:
        for number, log_probs, surprise in each_window(scorer, sample, report, "measuring the original"):
            require_finite(log_probs, surprise)
            likelihoods.append(surprise)
            packed = PackedLogProbs.pack(log_probs)
            np.savez(folder / f"{number}.npz", codes=packed.codes, lowest=packed.lowest, step=packed.step)
        generated = scorer.generate(sample.prompt, GENERATED_TOKENS, sample.stop)
    np.save(folder / "generated.npy", np.array(generated, dtype=np.int64))
    np.save(folder / "nll.npy", np.concatenate(likelihoods))
