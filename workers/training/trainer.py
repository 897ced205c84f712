"""The loop: transformers' Trainer, with the figures, checkpoints and pauses that a job needs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import is_torch_tf32_available

from app.domain.errors import TrainingFailed
from app.domain.fine_tuning import TrainingPlan
from workers.training import checkpoints
from workers.training.checkpoints import Progress
from workers.training.collation import Padding
from workers.training.examples import Examples
from workers.training.hooks import Hooks
from workers.training.losses import learned_logits, measure

# In one pass: bounds activations and logits, which are this times the vocabulary. Larger batches are gathered.
TOKENS_PER_PASS: Final = 4096
# Of a validation file, what is read after each epoch.
VALIDATION_TOKENS: Final = 16_384
# Writing checkpoints may take this share of the time; those that take no longer than a second are always written.
CHECKPOINT_SHARE: Final = 0.1
QUICK_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Work:
    """All that one training reads."""

    plan: TrainingPlan
    training: Examples
    validation: Examples | None
    padding: Padding
    folder: Path
    checkpoint_seconds: float


@dataclass
class Tally:
    """What was seen since it was last taken."""

    tokens: int = 0
    learned: int = 0
    hits: int = 0
    since: float = field(default_factory=time.monotonic)

    @torch.no_grad()
    def add(self, predicted: torch.Tensor, wanted: torch.Tensor, read: torch.Tensor) -> None:
        """Logits, the tokens that they should have given, and the mask of all that were read."""
        self.tokens += int(read.sum())
        self.learned += len(wanted)
        self.hits += int((predicted.argmax(dim=-1) == wanted).sum())


class TallyingTrainer(Trainer):
    """Computes the loss of learned tokens alone, and counts them on the way."""

    tally: Tally

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The mean over the learned tokens of all passes of a step, where the library counted them."""
        predicted, wanted = learned_logits(model, inputs)
        self.tally.add(predicted, wanted, inputs["attention_mask"])
        loss = cross_entropy(predicted.float(), wanted, reduction="sum")
        return loss / (len(wanted) if num_items_in_batch is None else num_items_in_batch)


class JobCallback(TrainerCallback):
    """Tells the hooks of every step, asks them for pauses, and decides when a checkpoint is due.

    The library logs a step, saves where `control` says so, then looks whether to stop.
    """

    def __init__(self, work: Work, hooks: Hooks, trainer: TallyingTrainer, progress: Progress) -> None:
        self.work = work
        self.hooks = hooks
        self.trainer = trainer
        self.progress = progress
        self.paused = False
        self.saved_at = time.monotonic()
        self.saving_seconds = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.tally = Tally()
        self.saved_at = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if "loss" not in logs:
            return  # the summary at the end
        step, total = state.global_step, self.work.plan.steps
        require_finite(logs["loss"], f"loss is {logs['loss']} at step {step} of {total}")
        self.hooks.metrics(step, total, self._step_metrics(logs))
        self.hooks.report(step / total, f"training: step {step} of {total}, loss {logs['loss']:.3f}")
        self._save_if_due(state, control)

    def _step_metrics(self, logs: dict[str, float]) -> dict[str, float]:
        tally, self.trainer.tally = self.trainer.tally, Tally()
        self.progress.trained_tokens += tally.tokens
        kept = {"train_loss": logs["loss"], "train_mean_token_accuracy": tally.hits / max(tally.learned, 1)}
        self.progress.metrics |= kept
        speed = tally.tokens / max(self.trainer.tally.since - tally.since, 1e-9)
        return kept | {"learning_rate": logs["learning_rate"], "tokens_per_second": speed}

    def _save_if_due(self, state: TrainerState, control: TrainerControl) -> None:
        if self._ends_epoch(state):
            return  # where a checkpoint is written anyway
        is_due = time.monotonic() - self.saved_at > self.work.checkpoint_seconds
        if self.hooks.wants_pause():
            self.paused = control.should_training_stop = control.should_save = True
        elif is_due and self._is_affordable():
            control.should_save = True

    def _ends_epoch(self, state: TrainerState) -> bool:
        per_epoch = -(-len(self.work.training) // self.work.plan.batch_size)
        return state.global_step % per_epoch == 0 or state.global_step >= self.work.plan.steps

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.paused:
            return
        self._validate(state.global_step)
        is_last = state.global_step >= self.work.plan.steps
        self.paused = not is_last and self.hooks.wants_pause()
        control.should_training_stop |= self.paused
        control.should_save = is_last or self.paused or self._is_affordable()

    def _is_affordable(self) -> bool:
        """Whether a checkpoint more is worth its time: epochs may be a step long, and models large."""
        rested = time.monotonic() - self.saved_at
        return self.saving_seconds <= QUICK_SECONDS or rested > self.saving_seconds / CHECKPOINT_SHARE

    def _validate(self, step: int) -> None:
        work = self.work
        if work.validation is None:
            return
        self.hooks.report(step / work.plan.steps, "measuring the loss on the validation file")
        sample = work.validation.first(VALIDATION_TOKENS)
        found = measure(self.trainer.model, sample.items, work.padding)
        require_finite(
            found.loss, f"loss on the validation file is {found.loss} after step {step} of {work.plan.steps}"
        )
        values = {"valid_loss": found.loss, "valid_mean_token_accuracy": found.accuracy}
        self.progress.metrics |= values
        self.hooks.metrics(step, work.plan.steps, values)
        self.trainer.tally.since = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The library has written the checkpoint; here it gets its place."""
        self.progress.step = state.global_step
        place = checkpoints.publish(self.work.folder, self.progress)
        self.hooks.checkpoint(state.global_step, place, dict(self.progress.metrics))
        now = time.monotonic()
        # From the step's end, which was when the tally was begun.
        self.saving_seconds = now - self.trainer.tally.since
        self.saved_at = self.trainer.tally.since = now


def require_finite(loss: float, words: str) -> None:
    """Raises TrainingFailed: a last step may break a model whose every earlier loss was a number."""
    if not math.isfinite(loss):
        raise TrainingFailed(f"the {words}; lower learning_rate_multiplier, or raise warmup")


def run_steps(model: Any, work: Work, hooks: Hooks, progress: Progress, resumed: Path | None) -> bool:
    """Trains from the start or from the checkpoint `resumed` to the end of the plan; False where it was paused.

    `progress` is brought up to date. Raises TrainingFailed where the loss is no number.
    """
    if resumed is not None and progress.step >= work.plan.steps:
        load_weights(model, resumed)
        return True
    trainer = TallyingTrainer(
        model=model,
        args=arguments(work, checkpoints.prepare(work.folder)),
        train_dataset=work.training.items,
        data_collator=work.padding,
    )
    callback = JobCallback(work, hooks, trainer, progress)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    return not callback.paused


def arguments(work: Work, folder: Path) -> TrainingArguments:
    plan, options = work.plan, work.plan.options
    per_pass = examples_per_pass(plan.batch_size, max(len(example) for example in work.training))
    cuda = torch.cuda.is_available()
    made = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=per_pass,
        gradient_accumulation_steps=plan.batch_size // per_pass,
        num_train_epochs=plan.epochs,
        max_steps=plan.steps,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_steps(options.warmup, plan.steps),
        optim="paged_adamw_8bit" if cuda else "adamw_torch_fused",
        use_cpu=not cuda,
        tf32=is_torch_tf32_available() or None,
        activation_checkpointing=options.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        seed=plan.seed,
        data_seed=plan.seed,
        save_strategy="no",  # a callback decides
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
    )
    if cuda:
        made._n_gpu = 1  # the model is on the first GPU; the library would copy it to all
    return made


def warmup_steps(share: float, steps: int) -> int:
    """The library's first step of a warmup has a learning rate of zero: a warmup of that step alone helps nobody."""
    warmup = int(share * steps)
    return warmup if warmup > 1 else 0


def examples_per_pass(batch_size: int, longest: int) -> int:
    """The largest divisor of the batch whose tokens fit one pass."""
    most = max(TOKENS_PER_PASS // longest, 1)
    return max(size for size in range(1, batch_size + 1) if batch_size % size == 0 and size <= most)


def load_weights(model: Any, checkpoint: Path) -> None:
    """What a checkpoint holds of the trained weights."""
    if hasattr(model, "peft_config"):
        model.load_adapter(str(checkpoint), "default", is_trainable=True)
        return
    for file in sorted(checkpoint.glob("model*.safetensors")):
        model.load_state_dict(load_file(file), strict=False)
