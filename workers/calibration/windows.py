"""Token windows for calibration: cut from a text, chosen by a seed, never repeated."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.domain.errors import InvalidParameter
from app.domain.quantization.calibration import CalibrationParams, CalibrationRecord

Windows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CalibrationSet:
    """`windows` has the shape (samples, sequence_length)."""

    windows: Windows
    record: CalibrationRecord


def choose_windows(tokens: npt.NDArray[np.int64], params: CalibrationParams) -> CalibrationSet:
    """Cuts (n,) token ids into windows and draws as many as are asked for.

    Raises InvalidParameter when there are too few: repeating text would count it twice without a word.
    """
    length = params.sequence_length
    count = len(tokens) // length
    if count < params.samples:
        raise InvalidParameter(
            f"the calibration text {params.dataset!r} has {len(tokens)} tokens, which make {count} windows of "
            f"{length}; {params.samples} were asked for. Lower samples or sequence_length, or give more text",
            param="method.calibration.samples",
        )
    windows = tokens[: count * length].reshape(count, length)
    chosen = np.random.default_rng(params.seed).permutation(count)[: params.samples]
    return make_set(windows[np.sort(chosen)], params)


def make_set(windows: Windows, params: CalibrationParams) -> CalibrationSet:
    digest = hashlib.sha256(np.ascontiguousarray(windows, dtype="<i8").tobytes()).hexdigest()
    return CalibrationSet(windows, CalibrationRecord(**params.model_dump(), sha256=digest))
