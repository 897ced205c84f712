"""One run that answers what a GPU does with Bitmill, or what this machine's processor does.

`python benchmarks/gpu.py [--device cuda|cpu] [--minutes 10] [--out FOLDER] [--quick] [--docs docs/gpu.md]`

Most telling first. Each step has a part of the time and is cut off at its end; each finding is written to
FOLDER/rows.jsonl as it comes, so that a run that is ended leaves what it found. With `--docs` the table there says
what was seen on this machine's GPU.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gpu_steps
from gpu_steps import Bench, CutOff, NotHere
from running import Bitmill, running_bitmill

Json = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """`share` of the run's time is what it may take, beside what earlier steps left over."""

    run: Callable[[Bench], None]
    share: float
    asks: str
    quick: bool = True


def _compared(bench: Bench) -> None:
    with without_gpu(), running_bitmill() as other:
        gpu_steps.compared(bench, other)


STEPS: Final[dict[str, Step]] = {
    "versions": Step(gpu_steps.versions, 0.03, "Which card, driver and libraries"),
    "worker": Step(gpu_steps.worker, 0.01, "The worker finds the card and takes the queue `gpu`"),
    "methods": Step(gpu_steps.methods, 0.25, "Each method on the demo model: seconds, peak of both memories, proof"),
    "serving": Step(gpu_steps.serving, 0.2, "Each artifact on the transformers engine: an answer, tokens per second"),
    "wide": Step(gpu_steps.wide, 0.15, "Methods on a generated model of 1.8 billion weights", quick=False),
    "training": Step(gpu_steps.training, 0.12, "QLoRA (paused, resumed) and QAT for 20 steps", quick=False),
    "out of memory": Step(gpu_steps.out_of_memory, 0.06, "A full GPU fails one job, and the next one runs"),
    "cancel": Step(gpu_steps.cancelling, 0.04, "A cancelled job gives the GPU's memory back", quick=False),
    "sharing": Step(gpu_steps.sharing, 0.04, "Two jobs do not share a card", quick=False),
    "compared": Step(_compared, 0.07, "What the GPU makes against what the processor makes, by tensor", quick=False),
    "vllm": Step(gpu_steps.vllm, 0.03, "vLLM on the card, where it is installed"),
}
BEGIN: Final = "<!-- seen: written by benchmarks/gpu.py -->"
END: Final = "<!-- end -->"


@contextmanager
def without_gpu() -> Iterator[None]:
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


class Results:
    """Rows as they come, on the disk at once."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "rows.jsonl"
        self.path.write_text("")
        self.rows: list[Json] = []

    def add(self, step: str, what: str, figures: Json) -> None:
        row = {"step": step, "what": what, **figures}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:400], flush=True)


def run(bitmill: Bitmill, given: argparse.Namespace, results: Results) -> None:
    begun = time.monotonic()
    chosen = {name: step for name, step in STEPS.items() if step.quick or not given.quick}
    whole, spent = sum(step.share for step in chosen.values()), 0.0
    bench = Bench(bitmill, given.device, given.quick, lambda what, figures: None)
    for name, step in chosen.items():
        spent += step.share
        bench.deadline = begun + spent / whole * given.minutes * 60
        bench.row = lambda what, figures, name=name: results.add(name, what, figures)  # type: ignore[misc]
        _take(name, step, bench, results)


def _take(name: str, step: Step, bench: Bench, results: Results) -> None:
    started = time.monotonic()
    outcome: Json = {"outcome": "done"}
    try:
        step.run(bench)
    except CutOff as cut:
        outcome = {"outcome": "cut off", "at": str(cut)}
    except NotHere as missing:
        outcome = {"outcome": "not here", "lacks": str(missing)}
    except Exception as error:
        # Whatever broke, the steps after it are as telling.
        outcome = {"outcome": "failed", "error": repr(error)[:500], "trace": traceback.format_exc()[-2000:]}
    results.add(name, "step", outcome | {"seconds": time.monotonic() - started})


def table(rows: list[Json], seen_on: str) -> str:
    """A row for each step: what it asks, and what was seen, or `not seen`."""
    lines = ["| step | what it asks | seen |", "| --- | --- | --- |"]
    for name, step in STEPS.items():
        mine = [row for row in rows if row["step"] == name]
        lines.append(f"| {name} | {step.asks} | {_seen(mine)} |")
    return "\n".join([seen_on, "", *lines])


def _seen(rows: list[Json]) -> str:
    ended = next((row for row in rows if row["what"] == "step"), None)
    if ended is None:
        return "not seen"
    found = [row for row in rows if row["what"] != "step"]
    good = sum(row.get("status", "succeeded") == "succeeded" and "error" not in row for row in found)
    return f"{ended['outcome']}, {good} of {len(found)} in {ended['seconds']:.0f} s"


def write_docs(path: Path, rows: list[Json]) -> None:
    card = next((row for row in rows if row["what"] == "versions"), {})
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    packages = ", ".join(f"{name} {version}" for name, version in (card.get("packages") or {}).items() if version)
    seen_on = f"Seen on {today}: {card.get('driver') or 'no GPU'}; {packages}."
    text = path.read_text()
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    path.write_text(f"{head}{BEGIN}\n\n{table(rows, seen_on)}\n\n{END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--quick", action="store_true", help="one method, and the steps that take seconds")
    parser.add_argument("--docs", type=Path, help="write what was seen into this page")
    given = parser.parse_args()
    results = Results(given.out)
    try:
        with (
            without_gpu() if given.device == "cpu" else nullcontext(),
            tempfile.TemporaryDirectory() as folder,
            running_bitmill(Path(folder)) as bitmill,
        ):
            run(bitmill, given, results)
    finally:
        if given.docs is not None:
            write_docs(given.docs, results.rows)
        print(json.dumps({"rows": results.rows}))


if __name__ == "__main__":
    main()
