"""The child's entry: one step of one job, in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import resource
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from app.domain.artifacts import Gate, artifact_key
from app.domain.cards import CardFacts
from app.domain.errors import (
    BitmillError,
    DiskFull,
    EvaluationFailed,
    InsufficientMemory,
    JobFailed,
    QuantizationFailed,
    TrainingFailed,
)
from app.domain.quantization.catalog import parse_method
from app.domain.quantization.spec import MethodParams, MethodSpec
from app.processes import die_with_parent
from app.settings import Settings, get_settings
from app.storage import artifacts
from app.storage.checkpoints import Checkpoint, cached_sha256, inspect_checkpoint
from workers.cards import report_facts, write_card
from workers.child import Channel, Message
from workers.evaluation.job import answer_tasks, evaluate, time_serving
from workers.job_run import Reporter, Run, hold_checkpoints, inputs_of, read_calibration_documents
from workers.stages import shared_stages
from workers.training.job import prove_job, train_job
from workers.versions import versions_of

log = logging.getLogger("bitmill.job")

# Which part of a job's progress bar each part of the work fills.
RESOLVE = (0.0, 0.1)
QUANTIZE = (0.1, 0.6)
PROVE = (0.6, 1.0)


def quantize(task: Message, channel: Channel, settings: Settings) -> None:
    """Resolves the source and what else is read, waits for the word to go on, then quantizes."""
    from workers.sources.resolve import resolve

    spec, params = parse_method(task["method"])
    source = resolve(task["model"], settings, Reporter(channel, RESOLVE).report)
    documents = read_calibration_documents(params.calibration_wanted(), settings)
    inputs = inputs_of(params.calibration_wanted(), documents) | _widened(spec, source.checkpoint, settings)
    description = describe(source.name, source.fingerprint, source.checkpoint)
    channel.send({"kind": "resolved", "inputs": inputs, **description})
    channel.receive()
    stages = shared_stages(settings, Reporter(channel, QUANTIZE).report)
    key = artifact_key(source.fingerprint, task["method"], versions_of(spec.packages, spec.revision), inputs)
    checkpoints = hold_checkpoints(Path(task["checkpoints"]), key)
    run = Run(Reporter(channel, QUANTIZE), settings, source, spec, stages, documents, checkpoints)
    report = _quantize(run, params, Path(task["artifact"]))
    channel.send({"kind": "done", "report": report, "peak_memory_bytes": peak_memory_bytes()})


def resolve_source(task: Message, channel: Channel, settings: Settings) -> None:
    """Brings the source to this disk and tells what it is, for work that has to know it before it begins."""
    from workers.sources.resolve import resolve

    source = resolve(task["model"], settings, Reporter(channel, (0.0, 1.0)).report)
    channel.send({"kind": "done", "source": describe(source.name, source.fingerprint, source.checkpoint)})


def _widened(spec: MethodSpec, checkpoint: Checkpoint, settings: Settings) -> dict[str, str]:
    """The setting that makes this architecture possible, if it takes one: the result depends on its value."""
    known = spec.architectures is None or checkpoint.architecture in spec.architectures
    if known or spec.widened_by is None:
        return {}
    command = str(getattr(settings, spec.widened_by))
    # The program behind the command may change, and its result with it.
    files = [Path(part) for part in shlex.split(command) if Path(part).is_file()]
    hashes = [cached_sha256(file, settings.cache_folder) for file in files]
    return {spec.widened_by: json.dumps([command, hashes])}


def _quantize(run: Run, params: MethodParams, target: Path) -> Message:
    from workers.quantization.registry import load_method

    checkpoint = run.source.checkpoint
    run.spec.require_architecture(checkpoint.architecture, widened=run.settings.is_given(run.spec.widened_by))
    run.spec.require_groups(params, {name: info.shape for name, info in checkpoint.tensors.items()})
    target.mkdir()
    needed = int(checkpoint.parameter_count * run.spec.bits(params) / 8)
    artifacts.require_free_disk(target, needed, run.settings.min_free_disk_bytes)
    run.report(0.0, "quantizing")
    return load_method(run.spec.name).quantize(checkpoint, target, params, run).model_dump(mode="json")


def prove(task: Message, channel: Channel, settings: Settings) -> None:
    """Loads the artifact back, has it generate, measures it against the original, and seals it."""
    from workers.evaluation.proof import prove_artifact

    given = channel.receive()
    source, made = given["source"], given["made"]
    reporter = Reporter(channel, PROVE)
    spec, params = parse_method(task["method"])
    original = inspect_checkpoint(Path(source["path"]))
    staged = Path(task["artifact"])
    card = prove_artifact(
        original,
        source["fingerprint"],
        staged,
        spec.output,
        settings,
        reporter.report,
        gate=Gate(task["gate"]),
        bits=spec.bits(params),
    )
    reporter.report(1.0, "sealing")
    facts = CardFacts(
        name=given["name"], source=source["name"], format=spec.output, method=task["method"],
        versions=versions_of(spec.packages, spec.revision), quality=card.model_dump(mode="json"),
        peak_memory_bytes=max(made["peak_memory_bytes"], peak_memory_bytes()), **report_facts(made["report"]),
    )  # fmt: skip
    write_card(staged, facts)
    sha256 = artifacts.seal(staged)
    channel.send(
        {
            "kind": "done",
            "card": card.model_dump(mode="json"),
            "manifest_sha256": sha256,
            "peak_memory_bytes": peak_memory_bytes(),
        }
    )


STEPS: Final[dict[str, Callable[[Message, Channel, Settings], None]]] = {
    "resolve": resolve_source,
    "quantize": quantize,
    "prove": prove,
    "evaluate": evaluate,
    "time": time_serving,
    "tasks": answer_tasks,
    "train": train_job,
    "prove_training": prove_job,
}

# What an unforeseen exception of a step is called; of others, a failed quantization.
FAILURES: Final[dict[str, type[JobFailed]]] = {
    "evaluate": EvaluationFailed,
    "time": EvaluationFailed,
    "tasks": EvaluationFailed,
    "train": TrainingFailed,
    "prove_training": TrainingFailed,
}


def describe(name: str, fingerprint: str, checkpoint: Checkpoint) -> Message:
    types: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        types[tensor.dtype] = types.get(tensor.dtype, 0) + 1
    return {
        "name": name,
        "path": str(checkpoint.path),
        "fingerprint": fingerprint,
        "size_bytes": artifacts.size_bytes(checkpoint.path),
        "parameter_count": checkpoint.parameter_count,
        "bits_per_weight": checkpoint.weight_bytes * 8 / checkpoint.parameter_count,
        "tensor_types": types,
    }


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_bitmill_error(error: Exception, failed: type[JobFailed] = QuantizationFailed) -> BitmillError:
    """What a client may be told of an exception; the log has the rest."""
    if isinstance(error, BitmillError):
        return error
    if isinstance(error, OSError) and (full := DiskFull.from_os_error(error)):
        return full
    # By name, since this process may have no torch: its own class for a GPU whose memory is full.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return InsufficientMemory("the job ran out of memory; run it on a worker with more")
    return failed(f"{type(error).__name__}: {error}; the worker's log of this job has the details")


def main(descriptor: int, parent_pid: int) -> None:
    die_with_parent(parent_pid)
    settings = get_settings()
    # Read by the hub's libraries when they are imported.
    os.environ["HF_ENDPOINT"] = settings.hub_endpoint
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    channel = Channel(descriptor)
    channel.beat()
    task = channel.receive()
    try:
        STEPS[task["step"]](task, channel, settings)
    except Exception as error:
        log.exception("step %s failed", task["step"])
        failed = FAILURES.get(task["step"], QuantizationFailed)
        channel.send({"kind": "error", "error": as_bitmill_error(error, failed).to_dict()})


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
