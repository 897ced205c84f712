"""What measuring needs of a loaded model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


class Scorer(Protocol):
    def logits(self, window: Tokens, positions: slice) -> Logits:
        """Logits (len(positions), vocabulary) that follow each of these positions of the window."""

    def each_logits(self, windows: Sequence[Tokens], positions: slice) -> Iterator[Logits]:
        """The same for each of several windows of one length, in turn; as few of them in memory as may be."""

    def generate(self, prompt: Tokens, max_tokens: int, stop: frozenset[int]) -> list[int]:
        """Greedy continuation, without the stop token that ended it."""

    def goes_on_after(self, stop: frozenset[int]) -> frozenset[int]:
        """Those of these tokens after which the artifact's engine would go on generating."""

    def lacks_template(self, template: str) -> bool:
        """Whether the artifact's engine would format conversations otherwise."""

    def tokenize(self, text: str) -> Tokens | None:
        """The artifact's own tokenization; None where it carries the original's files unchanged."""
