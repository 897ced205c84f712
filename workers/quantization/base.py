"""The interface of a quantization method. The framework owns everything around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from app.domain.artifacts import QuantizationReport
from app.domain.quantization.spec import MethodParams, MethodSpec
from app.storage.checkpoints import Checkpoint

P = TypeVar("P", bound=MethodParams)


class JobRun(Protocol):
    """All that a method knows of the outside world."""

    @property
    def max_shard_bytes(self) -> int:
        """Size limit of one safetensors file."""

    def report(self, fraction: float, stage: str) -> None:
        """Tells how much of the method's work is done, from 0 to 1, and what it is doing."""


class QuantizationMethod(ABC, Generic[P]):
    spec: ClassVar[MethodSpec]

    def check_environment(self) -> None:
        """Raises MethodUnavailable, saying what to install."""

    @abstractmethod
    def quantize(self, source: Checkpoint, target: Path, params: P, run: JobRun) -> QuantizationReport:
        """Writes the quantized model into the empty folder `target`.

        Raises IncompatibleModel for a model that the parameters do not fit, UnsupportedArchitecture for
        one that the method does not know. Cancelling kills the process: there is nothing to clean up.
        """
