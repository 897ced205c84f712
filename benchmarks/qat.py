"""What quantization-aware training recovers, beside a control that trains on the same data for as many steps.

`python benchmarks/qat.py [--quick] [--text FILE] [--steps N] [--learning-rate X]`. On the demo model, weights in groups
of 32 and 4 bits each, all on the same grid:

- bf16: the model as it is
- int4: rounded (what the method int4 makes)
- trained: fine-tuned in bf16
- trained, then int4: that, rounded
- qat: trained on the rounded grid

Trained on the built-in calibration text, measured on the documentation of Python; with --text on the first four fifths
of a file, measured on the rest. Perplexity is llama-perplexity's: windows of 512 tokens, of which the second half is
scored. Ratios are to bf16. A model that was trained is better on its text: what rounding costs is seen by comparing
the last three.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measured  # noqa: F401 -- puts the repository's root on the path
import numpy as np

from app.domain.artifacts import Measurement
from app.domain.fine_tuning import Adapter, TrainingOptions, TrainingPlan
from app.domain.quantization.catalog import parse_method
from app.settings import Settings
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.fakes.run import RecordingRun
from tests.fakes.training import FakeBase, RecordingHooks
from workers.calibration.texts import read_documents
from workers.evaluation.metrics import perplexity
from workers.evaluation.sample import Sample, cut_sample
from workers.evaluation.scorers.opening import open_artifact
from workers.evaluation.scoring import score
from workers.quantization.registry import load_method
from workers.sources.resolve import resolve
from workers.training.examples import Example, Examples, load_tokenizer
from workers.training.recipe import recipe_of
from workers.training.training import Data, Limits, train_on

MODEL = "demo/smollm2-135m-instruct"
GROUP_SIZE = 32
WINDOW = 128
BATCH = 4


@dataclass(frozen=True)
class Bench:
    """What all variants share. Artifacts lie in `folder`, by their variant's name."""

    source: Checkpoint
    examples: Examples
    sample: Sample
    steps: int
    learning_rate: float
    folder: Path

    def train(self, name: str, adapter: Adapter) -> Checkpoint:
        options = TrainingOptions(adapter=adapter, quantization=_grid() if adapter is Adapter.QAT else {})
        plan = TrainingPlan(
            epochs=1000, batch_size=BATCH, learning_rate=self.learning_rate, steps=self.steps, seed=0, options=options
        )
        target = self.folder / name
        target.mkdir()
        base, data = FakeBase(MODEL, self.source), Data(self.examples, None)
        limits = Limits(10**10, 10**6)
        train_on(base, target, recipe_of(options), plan, data, self.folder / f"{name}-ck", RecordingHooks(), limits)
        return inspect_checkpoint(target, quantized=True)

    def round(self, source: Checkpoint, name: str) -> Checkpoint:
        spec, params = parse_method({"type": "int4", "group_size": GROUP_SIZE})
        target = self.folder / name
        target.mkdir()
        load_method(spec.name).quantize(source, target, params, RecordingRun(source, self.folder / "stages"))
        return inspect_checkpoint(target, quantized=True)

    def measure(self, checkpoint: Checkpoint) -> Measurement:
        with open_artifact(checkpoint.path) as scorer:
            return perplexity(score(scorer, self.sample, None, lambda fraction, stage: None).nll)


def _grid() -> dict[str, Any]:
    return {"type": "int4", "group_size": GROUP_SIZE}


def prepare(arguments: argparse.Namespace, folder: Path) -> Bench:
    settings = Settings(data_dir=folder)
    source = resolve(MODEL, settings, lambda fraction, stage: None).checkpoint
    learned, held_out = texts(arguments.text, settings)
    tokens = np.array(load_tokenizer(source).encode(learned, verbose=False), dtype=np.int32)
    windows = tokens[: len(tokens) // WINDOW * WINDOW].reshape(-1, WINDOW)
    examples = Examples([Example(window, np.ones(WINDOW, dtype=np.bool_)) for window in windows])
    sample = cut_sample(source, "held out", held_out, length=512, limit=8 if arguments.quick else 16)
    steps = 8 if arguments.quick else arguments.steps
    return Bench(source, examples, sample, steps, arguments.learning_rate, folder)


def texts(file: Path | None, settings: Settings) -> tuple[str, list[Any]]:
    if file is None:
        (builtin,) = read_documents("builtin", settings)
        return str(builtin), read_documents("python-docs", settings)
    text = file.read_text(encoding="utf-8")
    cut = text.index("\n", len(text) * 4 // 5)
    return text[:cut], [text[cut:]]


def run(bench: Bench) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    trained: list[Checkpoint] = []

    def row(name: str, make: Any) -> None:
        started = time.perf_counter()
        checkpoint = make()
        seconds = time.perf_counter() - started
        found = bench.measure(checkpoint)
        rows.append(
            {
                "variant": name,
                "perplexity": found.value,
                "standard_error": found.standard_error,
                "perplexity_ratio": found.value / rows[0]["perplexity"] if rows else 1.0,
                "bits_per_weight": checkpoint.weight_bytes * 8 / bench.source.parameter_count,
                "seconds": seconds,
            }
        )
        trained.append(checkpoint)
        print(f"{name}: {found.value:.3f} ± {found.standard_error:.3f} in {seconds:.0f} s", flush=True)

    row("bf16", lambda: bench.source)
    row("int4", lambda: bench.round(bench.source, "rounded"))
    row("trained", lambda: bench.train("trained", Adapter.FULL))
    row("trained, then int4", lambda: bench.round(trained[-1], "trained-rounded"))
    row("qat", lambda: bench.train("qat", Adapter.QAT))
    return rows


def recovered(rows: list[dict[str, Any]]) -> float:
    """Of what rounding the trained model costs, in nats per token, the share that training on the grid saves."""
    nats = {row["variant"]: float(np.log(row["perplexity"])) for row in rows}
    cost = nats["trained, then int4"] - nats["trained"]
    return (nats["trained, then int4"] - nats["qat"]) / cost


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| variant | bits per weight | perplexity | ratio | seconds |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {row['variant']} | {row['bits_per_weight']:.2f} | {row['perplexity']:.2f} ± {row['standard_error']:.2f} | "
        f"×{row['perplexity_ratio']:.3f} | {row['seconds']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="eight steps and a small sample")
    parser.add_argument("--text", type=Path, help="a text file to train on and, at its end, to measure on")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(arguments, Path(folder))
        rows = run(bench)
    print()
    print(markdown(rows))
    share = recovered(rows)
    print(f"\n{bench.steps} steps of {BATCH} windows of {WINDOW} tokens, learning rate {bench.learning_rate:g}.")
    print(f"Of what rounding costs the trained model, training on the grid saved {share:.0%}.")
    print(json.dumps({"rows": rows, "recovered": share, "steps": bench.steps}))


if __name__ == "__main__":
    main()
