"""The contract that every quantization method's description fulfils."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import UnsupportedArchitecture
from app.domain.hardware import Device
from app.domain.quantization.calibration import CalibrationParams


class MethodParams(BaseModel, extra="forbid", frozen=True):
    """Parameters of a method. Unknown names are refused; every field has a default or a reason."""

    def calibration_wanted(self) -> CalibrationParams | None:
        """The calibration data that the method will ask for with these parameters, if any."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """A method as data, readable without any ML library.

    `label` turns parameters into the short text that names an artifact, such as `nf4-dq`.
    `bits` estimates stored bits per weight, for disk and memory checks before a job starts.
    `architectures` are those that the method knows, None for any. `widened_by` names the setting that, where it is
    given, lets it take others too.
    `packages` are the distributions whose versions are part of an artifact's content address.
    """

    name: str
    summary: str
    params: type[MethodParams]
    output: ArtifactFormat
    devices: frozenset[Device]
    label: Callable[[Any], str]
    bits: Callable[[Any], float]
    packages: tuple[str, ...]
    needs_calibration: bool = False
    needs_training: bool = False
    streams: bool = False
    architectures: frozenset[str] | None = None
    widened_by: str | None = None
    min_compute_capability: tuple[int, int] | None = None

    def require_architecture(self, architecture: str, *, widened: bool = False) -> None:
        """Raises UnsupportedArchitecture. `widened` tells that the setting which `widened_by` names is given."""
        if widened or self.architectures is None or architecture in self.architectures:
            return
        remedy = f"for others set BITMILL_{self.widened_by.upper()}; " if self.widened_by else ""
        raise UnsupportedArchitecture(
            f"method {self.name!r} cannot take a {architecture}; it takes {', '.join(sorted(self.architectures))}; "
            f"{remedy}GET /v1/quantization/methods lists other methods",
            param="model",
        )
