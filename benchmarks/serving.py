"""Bitmill beside the engines it stands on, and beside llama-cpp-python's own server, which answers one at a time.

`python benchmarks/serving.py [--quick] [--engine NAME …]` quantizes the demo model, then loads it in Bitmill and in a
bare server with the same slots, and asks both in turn. vLLM takes part where `bitmill engines install vllm` put it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from load import MAX_TOKENS, Measured, Server, measure, percentile
from measured import ROOT
from running import Bitmill, running_bitmill

from app.cli.launch import free_port
from app.settings import Settings
from tests.fakes.installation import end

# As many as clients at most: the library's own server of transformers has no bound.
SLOTS: Final = 32
CONTEXT: Final = 1024
LEVELS: Final = (1, 8, 16, 32)
QUICK_LEVELS: Final = (1, 16)
# At each level, how often both are asked in turn, and for how many answers each time.
ROUNDS: Final = {1: (8, 1), 8: (2, 16), 16: (2, 32), 32: (2, 48)}
# vLLM's worker spins for a second after its last token, on a core that the other server needs.
REST_SECONDS: Final = 1.5
LOAD_SECONDS: Final = 300

LLAMA_CPP: Final = """
import sys, threading, xllamacpp
path, port, slots, context = sys.argv[1], *map(int, sys.argv[2:5])
p = xllamacpp.CommonParams()
p.model.path, p.port, p.n_parallel, p.n_ctx, p.kv_unified = path, port, slots, context * 4, True
p.hostnames, p.cpuparams.n_threads, p.cpuparams_batch.n_threads = ["127.0.0.1"], int(sys.argv[5]), int(sys.argv[6])
p.n_threads_http, p.cache_ram_mib, p.ui, p.offline, p.use_jinja = 48, 0, False, True, True
server = xllamacpp.Server(p)
threading.Event().wait()
"""


@dataclass(frozen=True)
class Case:
    """An artifact on an engine, and how a bare server of that engine is started."""

    engine: str
    method: dict[str, Any]

    def command(self, folder: Path, port: int, settings: Settings) -> list[str]:
        if self.engine == "llama_cpp":
            threads = kept_threads(settings)
            numbers = map(str, (port, SLOTS, CONTEXT, threads, os.cpu_count()))
            return [sys.executable, "-c", LLAMA_CPP, str(folder / "model.gguf"), *numbers]
        address = ["--host", "127.0.0.1", "--port", str(port)]
        if self.engine == "transformers":
            cli = str(Path(sys.executable).with_name("transformers"))
            return [cli, "serve", str(folder), "--continuous-batching", *address]
        python = str(settings.engines_folder / "vllm" / "bin" / "python")
        model = ["--model", str(folder), "--max-model-len", str(CONTEXT), "--max-num-seqs", str(SLOTS)]
        return [python, "-m", "vllm.entrypoints.openai.api_server", *model, *address]


CASES: Final = (
    Case("llama_cpp", {"type": "gguf", "quantization": "Q4_K_M"}),
    Case("transformers", {"type": "none", "dtype": "bf16"}),
    Case("transformers", {"type": "bitsandbytes", "quantization": "nf4"}),
    Case("vllm", {"type": "none", "dtype": "bf16"}),
)
# What the serial server loads: of the same kind as the artifact that it is compared with.
SERIAL: Final = {"gguf": {"type": "gguf", "quantization": "Q4_K_M"}, "none": {"type": "gguf", "quantization": "BF16"}}


def kept_threads(settings: Settings) -> int:
    """What Bitmill measured for the model: a bare server gets the same."""
    kept = [json.loads(path.read_text()) for path in (settings.cache_folder / "threads").glob("*.json")]
    return int(kept[0]["threads"]) if kept else 1


@contextmanager
def bare_server(command: list[str], port: int, log: Path) -> Iterator[str]:
    """Yields the address of a server that answers."""
    # transformers' server lists the hub's cache, which has to exist for that.
    quiet = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    quiet["HF_HUB_CACHE"] = str(log.parent)
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=os.environ | quiet, stdout=output, stderr=output, start_new_session=True, cwd=log.parent
        )
        try:
            wait_until_it_answers(url, process, log)
            yield url
        finally:
            end(process)


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LOAD_SECONDS
    while (problem := _problem(url)) is not None:
        if time.monotonic() > deadline or process.poll() is not None:
            raise RuntimeError(f"no server at {url} ({problem}): {log.read_text()[-2000:]}")
        time.sleep(0.5)


def _problem(url: str) -> str | None:
    """Why the server cannot be asked yet; None: it can."""
    try:
        status = httpx.get(f"{url}/v1/models", timeout=5).status_code
    except httpx.TransportError as error:
        return repr(error)
    return None if status == httpx.codes.OK else f"status {status}"


def folder_of(settings: Settings, name: str) -> Path:
    from app.persistence.artifacts import ArtifactRepository
    from app.persistence.unit_of_work import Database
    from app.storage.artifacts import locate

    database = Database(settings.database)
    with database.reading() as session:
        row = ArtifactRepository(session).get(name)
    database.close()
    return locate(row, settings)


def compare(
    ours: Server, peer: Server, levels: tuple[int, ...], ways: tuple[bool, ...] = (True, False)
) -> Iterator[dict[str, Any]]:
    """Both in turn, so that the processor's caches are cold for both; throughputs are medians over the rounds."""
    for server in (ours, peer):
        asyncio.run(measure(server, concurrency=2, requests=4, stream=ways[0], offset=900))
    for stream in ways:
        for concurrency in levels:
            found: dict[str, list[Measured]] = {"ours": [], "peer": []}
            rounds, requests = ROUNDS[concurrency]
            for number in range(rounds):
                for name, server in (("ours", ours), ("peer", peer)):
                    time.sleep(REST_SECONDS)
                    plan = {"concurrency": concurrency, "requests": requests, "offset": 100 * number}
                    found[name].append(asyncio.run(measure(server, stream=stream, **plan)))
            yield row_of(found["ours"], found["peer"], concurrency, stream=stream)


def row_of(ours: list[Measured], peer: list[Measured], concurrency: int, *, stream: bool) -> dict[str, Any]:
    mine, theirs = (statistics.median(each.tokens_per_second for each in runs) for runs in (ours, peer))
    first = [value for each in ours for value in each.first_token_seconds]
    their_first = [value for each in peer for value in each.first_token_seconds]
    between = [value for each in ours for value in each.inter_token_seconds]
    return {
        "concurrency": concurrency,
        "stream": stream,
        "tokens_per_second": mine,
        "peer_tokens_per_second": theirs,
        "throughput_ratio": mine / theirs,
        "added_ttft_seconds": statistics.median(first) - statistics.median(their_first) if first else None,
        "ttft_p50_seconds": percentile(first, 0.5) if first else None,
        "ttft_p95_seconds": percentile(first, 0.95) if first else None,
        "inter_token_p50_seconds": percentile(between, 0.5) if between else None,
        "inter_token_p95_seconds": percentile(between, 0.95) if between else None,
    }


def show(row: dict[str, Any]) -> None:
    added = row["added_ttft_seconds"]
    ttft = f"first token {row['ttft_p50_seconds'] * 1000:6.0f} ms ({added * 1000:+.1f})" if added is not None else ""
    print(
        f"{row['engine']:13} {row['artifact']:8} {row['concurrency']:3} {'stream' if row['stream'] else 'whole':6} "
        f"{row['tokens_per_second']:6.0f} tokens/s  {row['throughput_ratio']:5.2f} × {row['peer']:6} {ttft}",
        flush=True,
    )


class Bench:
    """One running Bitmill, and what it is compared with."""

    def __init__(self, bitmill: Bitmill, *, quick: bool) -> None:
        self.bitmill = bitmill
        self.settings = bitmill.settings
        self.client = bitmill.client
        self.levels = QUICK_LEVELS if quick else LEVELS

    def beside_bare(self, case: Case) -> Iterator[dict[str, Any]]:
        name = self.bitmill.quantize(case.method)
        self.client.deploy(name, engine=case.engine, slots=SLOTS, context_length=CONTEXT)
        folder, port = folder_of(self.settings, name), free_port()
        command = case.command(folder, port, self.settings)
        with bare_server(command, port, self.settings.data_folder / "bare.log") as url:
            theirs = httpx.get(f"{url}/v1/models").json()["data"]
            bare = str(folder) if case.engine != "llama_cpp" else theirs[0]["id"]
            for row in compare(Server(self.bitmill.url, name), Server(url, bare), self.levels):
                yield {"engine": case.engine, "artifact": label(case.method), "peer": "bare", **row}
        self.client.undeploy(name)

    def beside_serial(self, case: Case) -> Iterator[dict[str, Any]]:
        name = self.bitmill.quantize(case.method)
        other = self.bitmill.quantize(SERIAL[case.method["type"]])
        self.client.deploy(name, engine=case.engine, slots=SLOTS, context_length=CONTEXT)
        file, port = folder_of(self.settings, other) / "model.gguf", free_port()
        options = ["--model", str(file), "--n_ctx", str(CONTEXT), "--n_threads", str(kept_threads(self.settings))]
        command = [sys.executable, "-m", "llama_cpp.server", *options, "--host", "127.0.0.1", "--port", str(port)]
        with bare_server(command, port, self.settings.data_folder / "serial.log") as url:
            # Streams of the serial server interrupt each other by design: whole answers are compared.
            for row in compare(Server(self.bitmill.url, name), Server(url, other), (16,), (False,)):
                yield {"engine": case.engine, "artifact": label(case.method), "peer": "serial", **row}
        self.client.undeploy(name)


def label(method: dict[str, Any]) -> str:
    return str(method.get("quantization") or method.get("dtype"))


def main() -> None:
    # Ended from outside it still ends the servers that it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"levels {QUICK_LEVELS} only")
    parser.add_argument("--engine", action="append", help="only this engine; may be repeated")
    parser.add_argument("--engines-folder", type=Path, default=ROOT / "bitmill-data" / "engines", help="where vLLM is")
    arguments = parser.parse_args()
    os.environ["BITMILL_ENGINES_DIR"] = str(arguments.engines_folder)
    rows = []
    with running_bitmill() as bitmill:
        there = {view["id"] for view in bitmill.client.engines() if view["available"]}
        wanted = there & set(arguments.engine or there)
        bench = Bench(bitmill, quick=arguments.quick)
        for case in (case for case in CASES if case.engine in wanted):
            comparisons = [bench.beside_bare(case)]
            if case.method["type"] in SERIAL and case.engine != "vllm":
                comparisons.append(bench.beside_serial(case))
            for comparison in comparisons:
                for row in comparison:
                    rows.append(row)
                    show(row)
    print(json.dumps({"max_tokens": MAX_TOKENS, "slots": SLOTS, "rows": rows}))


if __name__ == "__main__":
    main()
