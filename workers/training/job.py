"""The steps of a training job, each in a process of its own."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.domain.artifacts import ArtifactFormat, ArtifactKind, artifact_key
from app.domain.cards import CardFacts
from app.domain.files import FilePurpose
from app.domain.fine_tuning import (
    LEARNING_RATES,
    QUANTIZATIONS,
    FineTuningRequest,
    TrainingPlan,
    TrainingReport,
    plan,
)
from app.settings import Settings
from app.storage import artifacts
from workers.cards import report_facts, write_card
from workers.child import Channel, Message
from workers.job_run import Reporter, hold_checkpoints
from workers.lookup import find_artifact
from workers.uploads import find_upload
from workers.versions import versions_of

if TYPE_CHECKING:
    from workers.sources.resolve import Source

# Which part of a job's progress bar each part of the work fills.
RESOLVE: Final = (0.0, 0.02)
TRAIN: Final = (0.02, 0.95)
PROVE: Final = (0.95, 1.0)
PACKAGES: Final = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "compressed-tensors")


class Wishes:
    """Hears from the supervisor from the start: a wish to pause may come before the word to go on."""

    def __init__(self, channel: Channel) -> None:
        self.go = threading.Event()
        self.pause = threading.Event()
        self._channel = channel
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        try:
            while True:
                message = self._channel.receive()
                (self.pause if message.get("pause") else self.go).set()
        except EOFError:
            return  # the supervisor is gone, and this process goes with it


@dataclass(frozen=True)
class Hooks:
    """What the training tells and asks."""

    reporter: Reporter
    wishes: Wishes

    def report(self, fraction: float, stage: str) -> None:
        self.reporter.report(fraction, stage)

    def metrics(self, step: int, total_steps: int, values: dict[str, float]) -> None:
        loss = f": training loss {values['train_loss']:.3f}" if "train_loss" in values else ""
        self._tell("metrics", f"Step {step}/{total_steps}{loss}", {"step": step, "total_steps": total_steps, **values})

    def checkpoint(self, step: int, folder: Path, metrics: dict[str, float]) -> None:
        self._tell("checkpoint", f"Step {step} is saved.", {"step": step, "metrics": metrics})

    def wants_pause(self) -> bool:
        return self.wishes.pause.is_set()

    def _tell(self, kind: str, message: str, data: Message) -> None:
        self.reporter.channel.send({"kind": kind, "message": message, "data": data})


@dataclass(frozen=True)
class Base:
    """What is trained: a model to resolve, and, where a quantized one was asked for, the name it is served under."""

    model: str
    request: FineTuningRequest
    served_on: str | None


def find_base(request: FineTuningRequest, settings: Settings) -> Base:
    """A model whose 4 bits bitsandbytes made is trained as such: its original is quantized in the same way again."""
    row = find_artifact(request.model, settings)
    if row is None or row.kind != ArtifactKind.QUANTIZED or row.method is None or row.source is None:
        return Base(request.model, request, None)
    quantization = {"type": row.method["quantization"], "double_quant": row.method["double_quant"]}
    options = request.bitmill.model_copy(update={"quantization": quantization})
    return Base(row.source, request.model_copy(update={"bitmill": options}), row.name)


def train_job(task: Message, channel: Channel, settings: Settings) -> None:
    """Resolves the base, waits for the word to go on, then trains from the newest checkpoint."""
    from workers.job_process import describe, peak_memory_bytes
    from workers.sources.completeness import require_complete
    from workers.sources.resolve import resolve
    from workers.training.hooks import Paused
    from workers.training.training import train

    wishes = Wishes(channel)
    base = find_base(FineTuningRequest.model_validate(task["request"]), settings)
    source = resolve(base.model, settings, Reporter(channel, RESOLVE).report)
    require_complete(source.checkpoint, source.fingerprint, settings, head=True)
    channel.send({"kind": "resolved", **describe(source.name, source.fingerprint, source.checkpoint)})
    wishes.go.wait()
    data = training_files(base.request, settings)
    key = _key(source, base.request, data)
    checkpoints = hold_checkpoints(Path(task["checkpoints"]), key)
    target = Path(task["artifact"])
    target.mkdir()
    hooks = Hooks(Reporter(channel, TRAIN), wishes)
    try:
        report = train(source, target, base.request, data.training, data.validation, checkpoints, hooks, settings)
    except Paused:
        channel.send({"kind": "paused"})
        return
    channel.send(
        {
            "kind": "done",
            "report": report.model_dump(mode="json"),
            "hyperparameters": _hyperparameters(plan(base.request, report.examples)),
            "format": _format(base.request),
            "method": {"type": base.request.bitmill.adapter.value, **_described(base)},
            "key": key,
            "versions": versions_of(PACKAGES),
            "peak_memory_bytes": peak_memory_bytes(),
        }
    )


def _hyperparameters(decided: TrainingPlan) -> Message:
    """What `auto` came to."""
    multiplier = decided.learning_rate / LEARNING_RATES[decided.options.adapter]
    return {
        "n_epochs": decided.epochs,
        "batch_size": decided.batch_size,
        "learning_rate_multiplier": multiplier,
    }


@dataclass(frozen=True)
class TrainingFiles:
    training: Path
    validation: Path | None
    sha256: dict[str, str]


def training_files(request: FineTuningRequest, settings: Settings) -> TrainingFiles:
    """Raises FileNotFound, or InvalidParameter for files of another purpose."""
    row, training = find_upload(request.training_file, FilePurpose.FINE_TUNE, settings, param="training_file")
    sha256 = {"training": row.sha256}
    validation = None
    if request.validation_file is not None:
        held, validation = find_upload(
            request.validation_file, FilePurpose.FINE_TUNE, settings, param="validation_file"
        )
        sha256["validation"] = held.sha256
    return TrainingFiles(training, validation, sha256)


def _key(source: Source, request: FineTuningRequest, data: TrainingFiles) -> str:
    """What a checkpoint may go on from: the same base, data, settings and libraries."""
    recipe = request.model_dump(
        mode="json", include={"seed", "method", "hyperparameters", "bitmill"}, exclude={"bitmill": {"quality"}}
    )
    return artifact_key(source.fingerprint, recipe, versions_of(PACKAGES), data.sha256)


def _format(request: FineTuningRequest) -> str:
    options = request.bitmill
    adapter = options.is_low_rank and not options.merge
    return (ArtifactFormat.ADAPTER if adapter else ArtifactFormat.SAFETENSORS).value


def _described(base: Base) -> dict[str, Any]:
    """What of the options made a difference, with the defaults that counted."""
    options = base.request.bitmill
    described: dict[str, Any] = {}
    if options.is_low_rank:
        described = options.model_dump(mode="json", include={"rank", "dropout", "target_modules", "merge"})
        described |= {"alpha": options.scale, "base": base.served_on}
    if options.adapter in QUANTIZATIONS:
        described["quantization"] = QUANTIZATIONS[options.adapter](**options.quantization).model_dump(mode="json")
    return described


def prove_job(task: Message, channel: Channel, settings: Settings) -> None:
    """Loads what was trained, measures it against the base on the data, and seals it."""
    from workers.job_process import peak_memory_bytes
    from workers.sources.resolve import resolve
    from workers.training.proof import prove_training

    given = channel.receive()
    made = given["made"]
    trained = TrainingReport.model_validate(made["report"])
    reporter = Reporter(channel, PROVE)
    base = find_base(FineTuningRequest.model_validate(task["request"]), settings)
    source = resolve(base.model, settings, lambda fraction, stage: None)
    data = training_files(base.request, settings)
    staged = Path(task["artifact"])
    proof = prove_training(
        source, staged, base.request, trained, data.training, data.validation, reporter.report, settings,
        gate=base.request.bitmill.quality.gate,
    ).model_dump(mode="json")  # fmt: skip
    reporter.report(1.0, "sealing")
    peak = peak_memory_bytes()
    facts = CardFacts(
        name=given["name"], source=source.name, format=made["format"], method=made["method"], training=proof,
        versions=made["versions"], peak_memory_bytes=max(made["peak_memory_bytes"], peak),
        **report_facts(made["report"]),
    )  # fmt: skip
    write_card(staged, facts)
    sha256 = artifacts.seal(staged)
    channel.send({"kind": "done", "proof": proof, "manifest_sha256": sha256, "peak_memory_bytes": peak})
