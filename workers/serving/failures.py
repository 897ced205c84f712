"""How often a model's engine failed, and when it may be tried again."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from app.domain.errors import ServingUnavailable

LONGEST_BACKOFF_SECONDS = 60.0


@dataclass(slots=True)
class Failures:
    """How often a model's engine failed in a row, and why at last. The first failure costs no waiting."""

    count: int = 0
    retry_at: float = 0.0
    reason: str = ""

    def add(self, reason: str) -> None:
        self.count += 1
        self.reason = reason
        delay = 0.0 if self.count == 1 else min(2.0 ** (self.count - 2), LONGEST_BACKOFF_SECONDS)
        self.retry_at = time.monotonic() + delay

    def check(self, name: str) -> None:
        left = self.retry_at - time.monotonic()
        if left > 0:
            raise ServingUnavailable(
                f"the engine of {name!r} failed {self.count} times in a row and is tried again in "
                f"{math.ceil(left)} s. The last time: {self.reason}"
            )
