"""What a training tells the outside world, and asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Paused(Exception):
    """The training stopped because it was asked to; its newest checkpoint holds `step` steps."""

    def __init__(self, step: int) -> None:
        super().__init__(f"paused after step {step}")
        self.step = step


class Hooks(Protocol):
    """All that a training knows of the outside world. Calls come from one thread, one at a time."""

    def report(self, fraction: float, stage: str) -> None:
        """Tells how much of the training is done, from 0 to 1, and what it is doing."""

    def metrics(self, step: int, total_steps: int, values: dict[str, float]) -> None:
        """After every step: train_loss (nats per token), train_mean_token_accuracy, learning_rate, tokens_per_second.

        After each epoch, where there is a validation file, once more with valid_loss and valid_mean_token_accuracy.
        """

    def checkpoint(self, step: int, folder: Path, metrics: dict[str, float]) -> None:
        """A checkpoint was written. Its folder goes when two newer ones are there."""

    def wants_pause(self) -> bool:
        """Asked after every step."""
