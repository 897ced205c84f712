"""The contract that every quantization method's description fulfils."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import IncompatibleModel, UnsupportedArchitecture
from app.domain.hardware import Device
from app.domain.quantization.calibration import CalibrationParams

# A weight inside a numbered layer: embeddings and the output head lie outside.
LAYER_WEIGHT: Final = re.compile(r"\.\d+\..*\.weight$")


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
    `group_size` is how many weights of a row share a scale, where that must divide every row.
    `packages` are the distributions whose versions are part of an artifact's content address; `revision` is raised
    when our own part of the method comes to give other results.
    """

    name: str
    summary: str
    params: type[MethodParams]
    output: ArtifactFormat
    devices: frozenset[Device]
    label: Callable[[Any], str]
    bits: Callable[[Any], float]
    packages: tuple[str, ...]
    revision: int = 1
    group_size: Callable[[Any], int | None] = lambda params: None
    needs_calibration: bool = False
    needs_training: bool = False
    streams: bool = False
    architectures: frozenset[str] | None = None
    widened_by: str | None = None
    min_compute_capability: tuple[int, int] | None = None

    def require_groups(self, params: MethodParams, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises IncompatibleModel where the group size does not divide the rows of a layer's matrix.

        `shapes` are those of the checkpoint's tensors, by name.
        """
        group = self.group_size(params)
        skipped = getattr(params, "skip_modules", ())
        for name, shape in shapes.items():
            is_matrix = LAYER_WEIGHT.search(name) and len(shape) == 2
            if group and is_matrix and shape[1] % group and not any(key in name for key in skipped):
                raise IncompatibleModel(
                    f"{name} has rows of {shape[1]} weights, which groups of {group} do not divide; "
                    f"{_remedy(params, shape[1], group)}",
                    param="method.group_size" if _has_group_size(params) else "method",
                )

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


def _has_group_size(params: MethodParams) -> bool:
    return "group_size" in type(params).model_fields


def _remedy(params: MethodParams, row: int, group: int) -> str:
    fitting = next((size for size in (128, 64, 32, 16) if size < group and row % size == 0), None)
    if _has_group_size(params) and fitting:
        return f"choose group_size {fitting}"
    return "choose scales per channel, as fp8 and int8 have by default"
