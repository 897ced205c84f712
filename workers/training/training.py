"""A fine-tuning from files to files: examples, steps, and what is written of the trained model."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from transformers import set_seed

from app.domain.errors import BrokenSource
from app.domain.fine_tuning import FineTuningRequest, SampleLoss, TrainingPlan, TrainingReport, plan
from app.settings import Settings
from app.storage.artifacts import require_free_disk
from workers.training import checkpoints
from workers.training.checkpoints import Progress
from workers.training.collation import Padding, padding_of
from workers.training.examples import Encoder, Examples, load_tokenizer
from workers.training.hooks import Hooks, Paused
from workers.training.losses import measure
from workers.training.recipe import Base, Recipe, Written, recipe_of
from workers.training.trainer import Work, require_finite, run_steps

# Of the whole work: before and after the steps.
PREPARATION: Final = 0.05
WRITING: Final = 0.95
SAMPLE_TOKENS: Final = 4096
# Of a checkpoint per trained weight: itself and two moments, in 32 bits each; two are kept while a third is written.
CHECKPOINT_BYTES: Final = 12
CHECKPOINTS: Final = checkpoints.KEPT + 1


@dataclass(frozen=True)
class Data:
    """Examples to train on and, maybe, to measure on."""

    training: Examples
    validation: Examples | None

    @property
    def sample(self) -> Examples:
        """What is measured before and after."""
        return (self.validation or self.training).first(SAMPLE_TOKENS)

    @property
    def sampled_file(self) -> Literal["training", "validation"]:
        return "training" if self.validation is None else "validation"


@dataclass(frozen=True)
class Limits:
    """Size limit of one safetensors file, how often checkpoints are written, and what a disk must keep free."""

    max_shard_bytes: int
    checkpoint_seconds: float
    min_free_disk_bytes: int = 0


class Part:
    """Hooks for one part of the work, from `start` to `end`."""

    def __init__(self, hooks: Hooks, start: float, end: float) -> None:
        self._hooks = hooks
        self._start = start
        self._end = end
        self.metrics = hooks.metrics
        self.checkpoint = hooks.checkpoint
        self.wants_pause = hooks.wants_pause

    def report(self, fraction: float, stage: str) -> None:
        self._hooks.report(self._start + (self._end - self._start) * fraction, stage)


class Writing(Part):
    """The last part, in which files are written."""

    def __init__(self, hooks: Hooks, max_shard_bytes: int) -> None:
        super().__init__(hooks, WRITING, 1.0)
        self.max_shard_bytes = max_shard_bytes


def train(
    base: Base,
    target: Path,
    request: FineTuningRequest,
    training: Path,
    validation: Path | None,
    checkpoint_folder: Path,
    hooks: Hooks,
    settings: Settings,
) -> TrainingReport:
    """Fine-tunes the base on a file and writes the result into the empty folder `target`.

    `checkpoint_folder` outlives a lost or paused attempt: where it holds a checkpoint, the training goes on from the
    newest, to the same result. Raises Paused when the hooks ask for it, once a checkpoint is written; InvalidParameter
    for a file or an option that does not fit the model; TrainingFailed where the loss is no number.
    """
    hooks.report(0.0, "reading the examples")
    data = read_data(base, request, training, validation)
    decided = plan(request, len(data.training))
    limits = Limits(settings.max_shard_bytes, settings.training_checkpoint_seconds, settings.min_free_disk_bytes)
    return train_on(base, target, recipe_of(request.bitmill), decided, data, checkpoint_folder, hooks, limits)


def read_data(base: Base, request: FineTuningRequest, training: Path, validation: Path | None) -> Data:
    """Raises InvalidParameter, naming the file and the line at fault."""
    length = request.bitmill.sequence_length
    read = Encoder(base.checkpoint, length).encode_file(training)
    if validation is None:
        return Data(read, None)
    return Data(read, Encoder(base.checkpoint, length, "validation_file").encode_file(validation))


def train_on(
    base: Base,
    target: Path,
    recipe: Recipe,
    decided: TrainingPlan,
    data: Data,
    checkpoint_folder: Path,
    hooks: Hooks,
    limits: Limits,
) -> TrainingReport:
    """`train`, with its examples read and its plan decided."""
    hooks.report(0.01, "loading the model")
    set_seed(decided.seed)
    model = recipe.load(base.checkpoint)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    _require_room(checkpoint_folder, trained, limits)
    padding = padding_of(load_tokenizer(base.checkpoint))
    work = _work(decided, data, padding, checkpoint_folder, limits)
    resumed = checkpoints.newest(checkpoint_folder)
    progress = checkpoints.read_progress(resumed) if resumed else Progress()
    if progress.sample_before is None:
        hooks.report(0.02, "measuring the loss before the training")
        progress.sample_before = _loss_before(model, data, padding)
    if not run_steps(model, work, Part(hooks, PREPARATION, WRITING), progress, resumed):
        raise Paused(progress.step)
    hooks.report(WRITING, "measuring the loss after the training")
    sample = _sample(model, data, padding, progress.sample_before)
    written = _write(model, recipe, base, target, checkpoint_folder, hooks, limits)
    return _report(work, data, progress, sample, trained, written)


def _require_room(folder: Path, trained_parameters: int, limits: Limits) -> None:
    """Raises DiskFull before anything is trained."""
    needed = CHECKPOINTS * CHECKPOINT_BYTES * trained_parameters
    folder.mkdir(parents=True, exist_ok=True)
    require_free_disk(folder, needed, limits.min_free_disk_bytes)


def _work(plan: TrainingPlan, data: Data, padding: Padding, folder: Path, limits: Limits) -> Work:
    return Work(
        plan=plan,
        training=data.training,
        validation=data.validation,
        padding=padding,
        folder=folder,
        checkpoint_seconds=limits.checkpoint_seconds,
    )


def _sample_loss(model: Any, data: Data, padding: Padding) -> float:
    return measure(model, data.sample.items, padding).loss


def _loss_before(model: Any, data: Data, padding: Padding) -> float:
    """Raises BrokenSource."""
    loss = _sample_loss(model, data, padding)
    if not math.isfinite(loss):
        raise BrokenSource(
            f"the loss of the model is {loss} before the training: its weights are damaged. Download it again",
            param="model",
        )
    return loss


def _sample(model: Any, data: Data, padding: Padding, before: float) -> SampleLoss:
    after = _sample_loss(model, data, padding)
    require_finite(after, f"loss is {after} after the training")
    return SampleLoss(
        file=data.sampled_file,
        examples=len(data.sample),
        tokens=data.sample.loss_tokens,
        before=before,
        after=after,
    )


def _write(model: Any, recipe: Recipe, base: Base, target: Path, folder: Path, hooks: Hooks, limits: Limits) -> Written:
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    written = recipe.save(model, base, target, scratch, Writing(hooks, limits.max_shard_bytes))
    shutil.rmtree(scratch)
    return written


def _report(
    work: Work, data: Data, progress: Progress, sample: SampleLoss, trained: int, written: Written
) -> TrainingReport:
    return TrainingReport(
        steps=work.plan.steps,
        epochs=work.plan.steps / -(-len(data.training) // work.plan.batch_size),
        examples=len(data.training),
        truncated_examples=data.training.truncated,
        trained_tokens=progress.trained_tokens,
        trained_parameters=trained,
        metrics=progress.metrics,
        sample=sample,
        tensor_types=written.tensor_types,
        parameter_count=written.parameter_count,
        weight_bytes=written.weight_bytes,
    )
