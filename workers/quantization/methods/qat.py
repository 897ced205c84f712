"""Quantization-aware training, on an uploaded file or on windows of text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.domain.artifacts import QuantizationReport
from app.domain.files import FilePurpose
from app.domain.fine_tuning import Adapter, TrainingOptions, TrainingPlan
from app.domain.quantization.calibration import CalibrationRecord
from app.domain.quantization.methods.qat import SPEC, QatParams
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import JobRun, Part, QuantizationMethod
from workers.training.examples import Encoder, Example, Examples
from workers.training.qat import Qat
from workers.training.training import Data, Limits, train_on

CHECKPOINT_SECONDS = 90.0


@dataclass(frozen=True)
class Original:
    """The model that is trained."""

    name: str
    checkpoint: Checkpoint


class RunHooks:
    """A quantization job's progress; it cannot be paused."""

    def __init__(self, run: JobRun) -> None:
        self.report = run.report

    def metrics(self, step: int, total_steps: int, values: dict[str, float]) -> None:
        """The loss stands in the progress."""

    def checkpoint(self, step: int, folder: Path, metrics: dict[str, float]) -> None:
        """A new attempt finds it by itself."""

    def wants_pause(self) -> bool:
        return False


class QatMethod(QuantizationMethod[QatParams]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: QatParams, run: JobRun) -> QuantizationReport:
        examples, record = _examples(source, params, run)
        report = train_on(
            Original("", source),
            target,
            Qat(_options(params), params.skip_modules),
            _plan(params, len(examples)),
            Data(examples, None),
            run.checkpoints / "training",
            RunHooks(Part(run, 0.05, 1.0)),
            Limits(run.max_shard_bytes, CHECKPOINT_SECONDS),
        )
        return QuantizationReport(
            tensor_types=report.tensor_types,
            parameter_count=report.parameter_count,
            weight_bytes=report.weight_bytes,
            calibration=record,
        )


def _examples(source: Checkpoint, params: QatParams, run: JobRun) -> tuple[Examples, CalibrationRecord | None]:
    if params.training_file is not None:
        param = "method.training_file"
        path = run.upload(params.training_file, FilePurpose.FINE_TUNE, param=param)
        return Encoder(source, params.sequence_length, param).encode_file(path), None
    found = run.calibration(params.calibration, Part(run, 0.0, 0.05).report)
    learned = np.ones(found.windows.shape[1], dtype=np.bool_)
    return Examples([Example(window.astype(np.int32), learned) for window in found.windows]), found.record


def _options(params: QatParams) -> TrainingOptions:
    return TrainingOptions(
        adapter=Adapter.QAT,
        quantization={"type": params.scheme, "group_size": params.group_size},
        max_steps=params.max_steps,
        sequence_length=params.sequence_length,
        warmup=params.warmup,
        gradient_checkpointing=params.gradient_checkpointing,
    )


def _plan(params: QatParams, examples: int) -> TrainingPlan:
    batch = min(params.batch_size, examples)
    steps = params.epochs * -(-examples // batch)
    return TrainingPlan(
        epochs=params.epochs,
        batch_size=batch,
        learning_rate=params.learning_rate,
        steps=min(steps, params.max_steps or steps),
        seed=params.seed,
        options=_options(params),
    )
