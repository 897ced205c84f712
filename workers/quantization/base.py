"""The interface of a quantization method. The framework owns everything around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from app.domain.artifacts import QuantizationReport
from app.domain.files import FilePurpose
from app.domain.quantization.calibration import CalibrationParams
from app.domain.quantization.spec import MethodParams, MethodSpec
from app.storage.checkpoints import Checkpoint

if TYPE_CHECKING:
    from workers.calibration.windows import CalibrationSet

Report = Callable[[float, str], None]
P = TypeVar("P", bound=MethodParams)


class WritingRun(Protocol):
    """What writing a checkpoint needs to know of the outside world."""

    @property
    def max_shard_bytes(self) -> int:
        """Size limit of one safetensors file."""

    def report(self, fraction: float, stage: str) -> None:
        """Tells how much of the work is done, from 0 to 1, and what it is doing."""


class JobRun(WritingRun, Protocol):
    """All that a method knows of the outside world."""

    @property
    def gguf_converter(self) -> str | None:
        """The command that converts what the built-in converter to GGUF does not know, with {source} and {target}."""

    @property
    def checkpoints(self) -> Path:
        """A folder that outlives a lost attempt, for a library that can go on from where it was."""

    def calibration(self, params: CalibrationParams, report: Report) -> CalibrationSet:
        """Token windows for these parameters, which are those that `calibration_wanted` named.

        The model may have to write them itself: `report` is told how far that is.
        """

    def upload(self, file_id: str, purpose: FilePurpose, *, param: str) -> Path:
        """An uploaded file; `param` is the parameter that names it. Raises FileNotFound or InvalidParameter."""

    def stage(self, name: str, recipe: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """A folder that `build` filled, now or for an earlier job on the same source with the same recipe.

        It is read-only and stays until this process ends.
        """


class Part:
    """A JobRun for one part of the work, from `start` to `end`."""

    def __init__(self, run: JobRun, start: float, end: float) -> None:
        self._run = run
        self._start = start
        self._end = end
        self.calibration = run.calibration
        self.stage = run.stage
        self.upload = run.upload

    @property
    def max_shard_bytes(self) -> int:
        return self._run.max_shard_bytes

    @property
    def gguf_converter(self) -> str | None:
        return self._run.gguf_converter

    @property
    def checkpoints(self) -> Path:
        return self._run.checkpoints

    def report(self, fraction: float, stage: str) -> None:
        self._run.report(self._start + (self._end - self._start) * fraction, stage)


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
