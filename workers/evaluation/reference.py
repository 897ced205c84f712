"""The original's log-probabilities on a sample: computed once, kept, and shared by every comparison."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from app.settings import Settings
from app.storage.checkpoints import Checkpoint
from workers.evaluation.metrics import Floats, PackedLogProbs, log_softmax, negative_log_likelihood
from workers.evaluation.sample import GENERATED_TOKENS, Sample
from workers.evaluation.scorers.safetensors import SafetensorsScorer
from workers.evaluation.windows import scored

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Reference:
    """One file of packed log-probabilities per window, every scored token's likelihood, and an answer's tokens."""

    folder: Path
    nll: Floats
    generated: list[int]

    def log_probs(self, window: int) -> Floats:
        """Log-probabilities (positions, vocabulary) of one window."""
        with np.load(self.folder / f"{window}.npz") as stored:
            return PackedLogProbs(stored["codes"], stored["lowest"], stored["step"]).unpack()


def load_reference(
    checkpoint: Checkpoint, fingerprint: str, sample: Sample, settings: Settings, report: Report
) -> Reference:
    """Reads the reference from the cache, or computes it and adds it there by one rename."""
    folder = settings.cache_folder / "references" / _key(fingerprint, sample)
    if not folder.is_dir():
        _compute(checkpoint, sample, folder, report)
    return Reference(folder, np.load(folder / "nll.npy"), np.load(folder / "generated.npy").tolist())


def _key(fingerprint: str, sample: Sample) -> str:
    parts = {
        "source": fingerprint,
        "prompt": sample.prompt.tolist(),
        "windows": [window.tolist() for window in sample.windows],
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _compute(checkpoint: Checkpoint, sample: Sample, folder: Path, report: Report) -> None:
    temporary = folder.with_name(f".{folder.name}-{os.getpid()}")
    temporary.mkdir(parents=True)
    likelihoods = []
    report(0.0, "loading the original")
    with SafetensorsScorer(checkpoint.path) as scorer:
        for number, window in enumerate(sample.windows):
            report(number / len(sample.windows), "measuring the original")
            positions, targets = scored(window)
            log_probs = log_softmax(scorer.logits(window, positions))
            likelihoods.append(negative_log_likelihood(log_probs, targets))
            packed = PackedLogProbs.pack(log_probs)
            np.savez(temporary / f"{number}.npz", codes=packed.codes, lowest=packed.lowest, step=packed.step)
        generated = scorer.generate(sample.prompt, GENERATED_TOKENS, sample.stop)
    np.save(temporary / "generated.npy", np.array(generated, dtype=np.int64))
    np.save(temporary / "nll.npy", np.concatenate(likelihoods))
    _publish(temporary, folder)


def _publish(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        # Another job computed the same reference in the meantime; both are equal.
