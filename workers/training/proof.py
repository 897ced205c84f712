"""Loads what a training wrote, and holds it against what the training saw and against its base."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel

from app.domain.artifacts import Gate
from app.domain.errors import QualityGateFailed
from app.domain.fine_tuning import Adapter, FineTuningRequest, TrainingOptions, TrainingProof, TrainingReport
from app.settings import Settings
from workers.loading import load_causal_lm
from workers.training.collation import padding_of
from workers.training.examples import Encoder, Example, Examples
from workers.training.losses import Measured, measure
from workers.training.low_rank import load_low_rank_base
from workers.training.recipe import Base
from workers.training.training import SAMPLE_TOKENS

Report = Callable[[float, str], None]

GENERATED_TOKENS: Final = 48
# By how much the loss may differ from the one that the training saw, as a share of it: rounding to 16 bits where
# weights were trained, another base than that of the training where one of 4 bits was.
SAME: Final = 0.01
ROUNDED: Final = 0.03
OTHER_BASE: Final = 0.15
# And in nats, for losses near zero.
LEAST: Final = 0.02


@dataclass(frozen=True)
class Seen:
    """A model's loss on the sample, and what it answers to the first example's prompt."""

    measured: Measured
    text: str


class Examiner:
    """Asks models the same sample."""

    def __init__(self, encoder: Encoder, sample: Examples) -> None:
        self.encoder = encoder
        self.sample = sample

    def see(self, model: Any) -> Seen:
        measured = measure(model, self.sample.items, padding_of(self.encoder.tokenizer))
        return Seen(measured, self._answer(model, self.sample.items[0]))

    def _answer(self, model: Any, example: Example) -> str:
        prompt = torch.tensor([example.prompt], device=model.device)
        stops = sorted(self.encoder.stops)
        made = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=GENERATED_TOKENS,
            do_sample=False,
            eos_token_id=stops or None,
            pad_token_id=padding_of(self.encoder.tokenizer).pad_token_id,
        )
        return self.text(made[0, prompt.shape[1] :].tolist())

    def text(self, tokens: list[int]) -> str:
        return str(self.encoder.tokenizer.decode(tokens, skip_special_tokens=True))


def prove_training(
    base: Base,
    artifact: Path,
    request: FineTuningRequest,
    trained: TrainingReport,
    training: Path,
    validation: Path | None,
    report: Report,
    settings: Settings,
    gate: Gate = Gate.ON,
) -> TrainingProof:
    """Measures the artifact in `artifact` on the sample that the training measured itself on. For a process of its own.

    Raises QualityGateFailed, unless the gate is off, where its loss is not the training's, or no lower than before it.
    """
    options = request.bitmill
    report(0.0, "reading the examples")
    param, file = ("training_file", training) if validation is None else ("validation_file", validation)
    encoder = Encoder(base.checkpoint, options.sequence_length, param)
    examiner = Examiner(encoder, encoder.encode_first(file, SAMPLE_TOKENS))
    is_adapter = options.is_low_rank and not options.merge
    compare = _compare_adapter if is_adapter else _compare_model
    found, before, served = compare(base, artifact, options, examiner, report)
    proof = _proof(examiner, trained, found, before, served)
    if gate is Gate.ON:
        require_learned(proof, trained, options)
    report(1.0, "proven")
    return proof


def _compare_adapter(
    base: Base, artifact: Path, options: TrainingOptions, examiner: Examiner, report: Report
) -> tuple[Seen, Seen, float | None]:
    report(0.1, "loading the adapter on its base")
    model = _with_adapter(base, artifact, options)
    found = examiner.see(model)
    report(0.4, "measuring the base")
    with model.disable_adapter():
        before = examiner.see(model)
    if options.adapter is Adapter.LORA:
        return found, before, None
    del model
    _free()
    report(0.7, "measuring the adapter on the base in 16 bits")
    model = _with_adapter(base, artifact, options.model_copy(update={"adapter": Adapter.LORA}))
    return found, before, examiner.see(model).measured.loss


def _with_adapter(base: Base, artifact: Path, options: TrainingOptions) -> Any:
    return PeftModel.from_pretrained(load_low_rank_base(base.checkpoint, options), str(artifact)).eval()


def _compare_model(
    base: Base, artifact: Path, options: TrainingOptions, examiner: Examiner, report: Report
) -> tuple[Seen, Seen, float | None]:
    report(0.1, "loading the model")
    found = examiner.see(load_causal_lm(artifact))
    _free()
    report(0.5, "measuring the base")
    return found, examiner.see(load_causal_lm(base.checkpoint.path, "bfloat16")), None


def _free() -> None:
    """Models hold themselves in circles; two at once may not fit."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _proof(
    examiner: Examiner, trained: TrainingReport, found: Seen, before: Seen, served: float | None
) -> TrainingProof:
    first = examiner.sample.items[0]
    return TrainingProof(
        file=trained.sample.file,
        examples=len(examiner.sample),
        tokens=found.measured.tokens,
        loss=found.measured.loss,
        trained_loss=trained.sample.after,
        base_loss=before.measured.loss,
        served_loss=served,
        accuracy=found.measured.accuracy,
        base_accuracy=before.measured.accuracy,
        prompt_text=examiner.text(first.prompt),
        expected_text=examiner.text(first.answer),
        generated_text=found.text,
        base_text=before.text,
    )


def require_learned(proof: TrainingProof, trained: TrainingReport, options: TrainingOptions) -> None:
    """Raises QualityGateFailed."""
    wanted = proof.trained_loss
    allowed = max(_tolerance(options) * wanted, LEAST)
    if not math.isfinite(proof.loss) or abs(proof.loss - wanted) > allowed:
        raise QualityGateFailed(
            f"the loss on {proof.examples} examples of the {proof.file} file is {proof.loss:.4f} where the result was "
            f"loaded back, and was {wanted:.4f} at the training's end; what was written is not what was trained. "
            f"Submit the job again"
        )
    if proof.loss >= trained.sample.before:
        raise QualityGateFailed(
            f"the loss on {proof.examples} examples of the {proof.file} file is {proof.loss:.4f}, and was "
            f"{trained.sample.before:.4f} before the training: nothing was learned. Train longer, change "
            f"learning_rate_multiplier, or turn the quality gate off to keep the result"
        )


def _tolerance(options: TrainingOptions) -> float:
    if options.adapter is Adapter.QLORA and options.merge:
        return OTHER_BASE
    return SAME if options.is_low_rank and not options.merge else ROUNDED
