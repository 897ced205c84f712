"""What `benchmarks/gpu.py` asks of a machine, step by step, through Bitmill's own commands and HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import gpu_machine
import httpx
from gpu_tensors import differences
from gpu_watch import peak, used_bytes
from load import Server, measure
from running import MODEL, Bitmill
from widened import widen

from app.client import RequestFailed

Json = dict[str, Any]
WIDE: Final = "wide"
# What a model costs the GPU before anything is in it: CUDA's context.
CONTEXT_BYTES: Final = 1024**3
POLL_SECONDS: Final = 0.2

# Most telling first: whatever is cut off is cut at the end.
METHODS: Final[tuple[Json, ...]] = (
    {"type": "bitsandbytes", "quantization": "nf4"},
    {"type": "gptq", "bits": 4, "group_size": 64},
    {"type": "fp8"},
    {"type": "int4", "group_size": 64},
    {"type": "awq", "group_size": 64},
    {"type": "bitsandbytes", "quantization": "int8"},
    {"type": "int8"},
    {"type": "fp4", "format": "nvfp4"},
    {"type": "none", "dtype": "bf16"},
    {"type": "int4", "group_size": 64, "algorithm": "gptq"},
    {"type": "int8", "smoothing": 0.5, "algorithm": "gptq"},
    {"type": "gguf", "quantization": "Q4_K_M"},
    {"type": "fp8", "format": "e5m2", "activations": "none"},
    {"type": "fp4", "format": "mxfp4"},
)
QUICK_METHODS: Final = METHODS[:1]
WIDE_METHODS: Final[tuple[Json, ...]] = (METHODS[0], METHODS[2], METHODS[1])


class CutOff(Exception):
    """The step's time is over."""


class NotHere(Exception):
    """This machine lacks what the step is about."""


@dataclass
class Bench:
    """`bitmill` runs on the device; `row` is told each finding as it comes."""

    bitmill: Bitmill
    device: str
    quick: bool
    row: Callable[[str, Json], None]
    deadline: float = float("inf")
    made: dict[str, Json] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def finish(self, job: Json) -> Json:
        """The job as it ended, however that was. Raises CutOff, and the job is cancelled."""
        while job["status"] not in ("succeeded", "failed", "cancelled"):
            if time.monotonic() > self.deadline:
                self.bitmill.client.cancel(job["id"])
                raise CutOff
            time.sleep(POLL_SECONDS)
            job = self.bitmill.client.job(job["id"])
        return job

    def quantize(self, method: Json, model: str = MODEL) -> Json:
        """What a job took and made. Raises CutOff."""
        started = time.monotonic()
        with peak() as seen:
            # Ungated: what a GPU makes of a method is to be measured, not refused.
            job = self.finish(self.bitmill.client.submit(model, method, gate="off"))
        found: Json = {"status": job["status"], "seconds": time.monotonic() - started, "peak_gpu_bytes": seen.bytes}
        if job["status"] != "succeeded":
            return found | {"error": job["error"]}
        quality, actual = job["quality"] or {}, job["actual"] or {}
        found |= {name: quality.get(name) for name in ("kl_divergence", "perplexity", "reference_perplexity")}
        return found | {"model": job["quantized_model"], "peak_host_bytes": actual.get("peak_memory_bytes"),
                        "predicted": job["predicted"], "actual": actual}  # fmt: skip

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        until = min(time.monotonic() + seconds, self.deadline)
        while not condition():
            if time.monotonic() > until:
                raise CutOff(what)
            time.sleep(POLL_SECONDS)


def versions(bench: Bench) -> None:
    bench.row("versions", gpu_machine.versions())


def worker(bench: Bench) -> None:
    (found,) = bench.bitmill.client.workers()
    gpus = found["hardware"]["gpus"]
    assert ("gpu" in found["queues"]) is bench.on_gpu, found["queues"]
    assert bool(gpus) is bench.on_gpu, gpus
    bench.row("worker", {"queues": found["queues"], "gpus": gpus, "methods": found["methods"]})


def methods(bench: Bench) -> None:
    there = {each["id"] for each in bench.bitmill.client.methods() if each["available"]}
    for method in QUICK_METHODS if bench.quick else METHODS:
        name = _label(method)
        if method["type"] not in there:
            bench.row(name, {"status": "not here"})
            continue
        bench.made[name] = bench.quantize(method)
        bench.row(name, bench.made[name])


def serving(bench: Bench) -> None:
    """Each artifact on the transformers engine: an answer, and tokens per second."""
    for name, made in bench.made.items():
        if "model" in made and not name.startswith("gguf"):
            _serve(bench, name, made["model"])


def _serve(bench: Bench, name: str, model: str) -> None:
    client = bench.bitmill.client
    try:
        with peak() as seen:
            client.deploy(model, engine="transformers")
            said = _chat(bench, model)
        levels = (1,) if bench.quick else (1, 8, 32)
        server = Server(bench.bitmill.url, model)
        rates = {str(level): _rate(bench, server, level) for level in levels}
        view = client.deployment(model)
        bench.row(
            name, {"answer": said, "tokens_per_second": rates, "loaded_gpu_bytes": seen.bytes, "deployment": view}
        )
    except (RequestFailed, httpx.HTTPError, AssertionError) as error:
        bench.row(name, {"status": "failed", "error": str(error)[:500]})
    finally:
        client.undeploy(model)


def _rate(bench: Bench, server: Server, level: int) -> float:
    if time.monotonic() > bench.deadline:
        raise CutOff
    found = asyncio.run(measure(server, concurrency=level, requests=2 * level, stream=True, max_tokens=32))
    return found.tokens_per_second


def _chat(bench: Bench, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 16, "temperature": 0}  # fmt: skip
    answer = httpx.post(f"{bench.bitmill.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def training(bench: Bench) -> None:
    """Twenty steps each, one of them paused and resumed."""
    client = bench.bitmill.client
    lines = [{"messages": [{"role": "user", "content": f"What is {n} and {n}?"},
                           {"role": "assistant", "content": f"It is {2 * n}."}]} for n in range(16)]  # fmt: skip
    path = bench.bitmill.settings.data_folder / "sums.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    file = client.upload_file(path, "fine-tune")["id"]
    steps = 2 if bench.quick else 20
    for adapter in ("qlora",) if bench.quick else ("qlora", "qat"):
        options = {"adapter": adapter, "max_steps": steps, "sequence_length": 64}
        started = time.monotonic()
        with peak() as seen:
            job = client.fine_tune(MODEL, file, hyperparameters={"batch_size": 4, "n_epochs": 10}, bitmill=options)
            paused = _pause(bench, job) if adapter == "qlora" and not bench.quick else None
            job = bench.finish(job)
        bench.row(adapter, {"status": job["status"], "seconds": time.monotonic() - started, "error": job["error"],
                            "peak_gpu_bytes": seen.bytes, "paused_after_seconds": paused,
                            "result": job["bitmill"]["result"]})  # fmt: skip


def _pause(bench: Bench, job: Json) -> float:
    client = bench.bitmill.client
    bench.wait(lambda: client.job(job["id"])["bitmill"]["progress"]["fraction"] > 0.2, "the training begins", 300)
    started = time.monotonic()
    client.pause(job["id"])
    bench.wait(lambda: client.job(job["id"])["status"] == "paused", "the training pauses", 120)
    seconds = time.monotonic() - started
    client.resume(job["id"])
    return seconds


def cancelling(bench: Bench) -> None:
    """A job that is cancelled gives the GPU's memory back."""
    before = used_bytes()
    job = bench.bitmill.client.submit(MODEL, {"type": "gptq", "bits": 4, "group_size": 32}, gate="off")
    bench.wait(lambda: bench.bitmill.client.job(job["id"])["progress"]["fraction"] > 0.12, "the job is at work", 300)
    during = used_bytes()
    started = time.monotonic()
    bench.bitmill.client.cancel(job["id"])
    bench.wait(lambda: bench.bitmill.client.job(job["id"])["status"] == "cancelled", "the job is cancelled")
    if before is not None:
        bench.wait(lambda: (used_bytes() or 0) <= before + CONTEXT_BYTES // 8, "the memory comes back")
    bench.row("cancel", {"used_before": before, "used_during": during, "used_after": used_bytes(),
                         "seconds": time.monotonic() - started})  # fmt: skip


def out_of_memory(bench: Bench) -> None:
    """A job that finds the GPU full fails as that, and the next one runs."""
    if not bench.on_gpu:
        raise NotHere("a GPU to fill")
    with gpu_machine.filled_gpu():
        full = bench.quantize({"type": "gptq", "bits": 4, "group_size": 16})
    after = bench.quantize({"type": "gptq", "bits": 8, "group_size": 64})
    code = (full.get("error") or {}).get("code")
    bench.row("out of memory", {"status": full["status"], "code": code, "error": full.get("error"), "next": after})


def sharing(bench: Bench) -> None:
    """Two jobs and two workers: on one GPU one job waits for the other, for its worker is the only one to have it."""
    client = bench.bitmill.client
    data = bench.bitmill.settings.data_folder
    with gpu_machine.another_worker(data):
        bench.wait(lambda: len(client.workers()) == 2, "the second worker arrives", 120)
        jobs = [client.submit(MODEL, {"type": "int4", "group_size": size}, gate="off")["id"] for size in (32, 16)]
        most = 0
        while (states := [client.job(job)["status"] for job in jobs]) and {"queued", "running"} & set(states):
            most = max(most, states.count("running"))
            if time.monotonic() > bench.deadline:
                raise CutOff
            time.sleep(POLL_SECONDS)
        queues = [each["queues"] for each in client.workers()]
    bench.row("two jobs", {"queues": queues, "at_once": most, "ended": states})
    assert not bench.on_gpu or (most == 1 and ["cpu"] in queues), "the two shared a GPU"


def compared(bench: Bench, other: Bitmill) -> None:
    """The artifacts of the processor and of the GPU, tensor by tensor. `other` runs without a GPU."""
    beside = Bench(other, "cpu", bench.quick, bench.row, bench.deadline)
    for method in METHODS[:1] if bench.quick else METHODS[:8]:
        name = _label(method)
        here = bench.made.get(name, {})
        there = beside.quantize(method) if "model" in here else {}
        if "model" in there:
            with tempfile.TemporaryDirectory() as folder:
                pair = ((bench.bitmill, here), (other, there))
                folders = [_export(each, made["model"], Path(folder)) for each, made in pair]
                bench.row(name, differences(*folders))
        else:
            bench.row(name, {"status": "not made on both", "error": there.get("error")})


def _export(bitmill: Bitmill, model: str, folder: Path) -> Path:
    target = folder / str(len(list(folder.iterdir())))
    command = [sys.executable, "-m", "app.cli.main", "export", model, str(target)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"BITMILL_URL": bitmill.url})
    return target


def wide(bench: Bench) -> None:
    """A generated model of 1.8 billion weights that answers as the demo model does."""
    root = bench.bitmill.settings.data_folder / "models"
    if not (root / WIDE).is_dir():
        widen(bench.bitmill.settings.sources_folder / MODEL, root / WIDE, 2 if bench.quick else 4)
    for method in WIDE_METHODS[:1] if bench.quick else WIDE_METHODS:
        bench.row(_label(method), bench.quantize(method, WIDE))


def vllm(bench: Bench) -> None:
    """vLLM through Bitmill, where it is installed."""
    client, model = bench.bitmill.client, next((made["model"] for made in bench.made.values() if "model" in made), None)
    engines = os.environ.get("BITMILL_ENGINES_DIR")
    if model is None or engines is None or not (Path(engines) / "vllm").is_dir():
        raise NotHere("vLLM, in the folder of BITMILL_ENGINES_DIR")
    client.deploy(MODEL, engine="vllm")
    bench.row("vllm", {"answer": _chat(bench, MODEL), "tokens_per_second": {
        str(level): _rate(bench, Server(bench.bitmill.url, MODEL), level) for level in (1, 8, 32)}})  # fmt: skip


def _label(method: Json) -> str:
    return " ".join(str(value) for value in method.values())
