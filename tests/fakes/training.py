"""What trainings in tests learn, and hooks that remember what they were told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.domain.fine_tuning import FineTuningRequest
from app.storage.checkpoints import Checkpoint

FILE_ID = "file-" + "0" * 24
# Each question has an answer that no model knows unless it was taught.
FACTS = (
    ("Where is the mill?", "By the river."),
    ("What is the capital?", "Zürich."),
    ("What turns?", "The stones."),
    ("Who flew in 1783?", "A sheep, a duck and a rooster."),
    ("What is 2 and 3?", "5."),
    ("What keeps most?", "A quantized model."),
)


@dataclass(frozen=True)
class FakeBase:
    """A model's name and files, as the job's source has them."""

    name: str
    checkpoint: Checkpoint


class RecordingHooks:
    """Remembers everything; asks for a pause after step `pause_after`."""

    def __init__(self, pause_after: int | None = None) -> None:
        self.pause_after = pause_after
        self.steps: dict[int, dict[str, float]] = {}
        self.validations: dict[int, dict[str, float]] = {}
        self.reports: list[tuple[float, str]] = []
        self.checkpoints: list[tuple[int, Path, dict[str, float]]] = []

    def report(self, fraction: float, stage: str) -> None:
        self.reports.append((fraction, stage))

    def metrics(self, step: int, total_steps: int, values: dict[str, float]) -> None:
        (self.validations if "valid_loss" in values else self.steps)[step] = values

    def checkpoint(self, step: int, folder: Path, metrics: dict[str, float]) -> None:
        self.checkpoints.append((step, folder, metrics))

    def wants_pause(self) -> bool:
        return self.pause_after is not None and len(self.steps) > 0 and max(self.steps) >= self.pause_after

    @property
    def losses(self) -> list[float]:
        return [values["train_loss"] for _, values in sorted(self.steps.items())]


def write_facts(path: Path, facts: tuple[tuple[str, str], ...] = FACTS) -> Path:
    lines = []
    for question, answer in facts:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines))
    return path


def request_for(adapter: str, *, epochs: int = 10, multiplier: float = 50.0, **options: Any) -> FineTuningRequest:
    """Batches of two, so that an epoch on FACTS has three steps."""
    hyperparameters = {"n_epochs": epochs, "batch_size": 2, "learning_rate_multiplier": multiplier}
    return FineTuningRequest.model_validate(
        {
            "model": "local/tiny",
            "training_file": FILE_ID,
            "seed": 7,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "bitmill": {"adapter": adapter, "sequence_length": 64, **options},
        }
    )
