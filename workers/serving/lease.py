"""What a request holds while it is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.domain.errors import BitmillError
from workers.serving.admission import Turn
from workers.serving.deployment import Deployment
from workers.serving.process import Running
from workers.serving.vitals import Vitals


@dataclass(frozen=True, slots=True)
class Lease:
    """A model's running engine, which is not unloaded meanwhile, and the request's turn at its slots."""

    deployment: Deployment
    running: Running
    turn: Turn

    @property
    def vitals(self) -> Vitals:
        return self.deployment.vitals

    def require(self) -> None:
        """Raises EngineFailed where the engine was given up."""
        if self.deployment.failure is not None:
            raise self.deployment.failure

    def on_failure(self, tell: Callable[[BitmillError], None]) -> Callable[[], None]:
        """`tell` hears of it once the engine is given up. Returns what takes it off again."""
        self.deployment.to_tell.add(tell)
        return lambda: self.deployment.to_tell.discard(tell)
