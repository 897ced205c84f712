"""What the serving host and the API add to an engine's first token: the same process, asked by each way in turn.

`python benchmarks/hops.py [--quick] [--engines-folder FOLDER]`, one request at a time. The aim: under 5 ms at the
median from the engine itself to the API.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
from load import Server, measure
from running import Bitmill, running_bitmill
from serving import CASES, CONTEXT, SLOTS, Case, label

from workers.serving.engines.base import API_KEY_VARIABLE

REQUESTS: Final = 60
QUICK_REQUESTS: Final = 10
# The first answers find caches empty.
DISCARDED: Final = 3
MAX_TOKENS: Final = 4
KEYS: Final = (API_KEY_VARIABLE, "VLLM_API_KEY")


def ways(bitmill: Bitmill, name: str) -> dict[str, Server]:
    """How the loaded model can be asked: without Bitmill, through the serving host, through the API."""
    (view,) = [view for view in bitmill.client.deployments() if view["model"] == name]
    root = psutil.Process(view["pid"])
    engine = next(each for each in (root, *root.children(recursive=True)) if "--port" in each.cmdline())
    environment = engine.environ()
    key = next(environment[name] for name in KEYS if name in environment)
    (host,) = [role for role in bitmill.fleet.roles if role.name == "serving"]
    return {
        "engine": Server(address(engine), name, {"authorization": f"Bearer {key}"}),
        "host": Server(address(psutil.Process(host.process.pid)), name),
        "api": Server(bitmill.url, name),
    }


def address(process: psutil.Process) -> str:
    arguments = process.cmdline()
    return f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}"


def compare(bitmill: Bitmill, case: Case, requests: int) -> dict[str, Any]:
    name = bitmill.quantize(case.method)
    bitmill.client.deploy(name, engine=case.engine, slots=SLOTS, context_length=CONTEXT)
    servers = ways(bitmill, name)
    seconds: dict[str, list[float]] = {way: [] for way in servers}
    for number in range(DISCARDED + requests):
        for place, (way, server) in enumerate(servers.items()):
            plan = {"concurrency": 1, "requests": 1, "offset": number * len(servers) + place}
            found = asyncio.run(measure(server, stream=True, max_tokens=MAX_TOKENS, **plan))
            seconds[way] += found.first_token_seconds
    bitmill.client.undeploy(name)
    medians = {way: statistics.median(each[DISCARDED:]) for way, each in seconds.items()}
    return {
        "engine": case.engine,
        "artifact": label(case.method),
        **{f"{way}_ttft_seconds": median for way, median in medians.items()},
        "added_ttft_seconds": medians["api"] - medians["engine"],
    }


def cases(bitmill: Bitmill) -> Iterator[Case]:
    there = {view["id"] for view in bitmill.client.engines() if view["available"]}
    yield from (case for case in CASES if case.engine in there)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REQUESTS} requests each way, not {REQUESTS}")
    parser.add_argument("--engines-folder", type=Path, help="where vLLM is")
    arguments = parser.parse_args()
    if arguments.engines_folder:
        os.environ["BITMILL_ENGINES_DIR"] = str(arguments.engines_folder)
    rows = []
    with running_bitmill() as bitmill:
        for case in cases(bitmill):
            row = compare(bitmill, case, QUICK_REQUESTS if arguments.quick else REQUESTS)
            rows.append(row)
            milliseconds = "  ".join(
                f"{way} {row[f'{way}_ttft_seconds'] * 1000:6.1f} ms" for way in ("engine", "host", "api")
            )
            print(f"{row['engine']:13} {row['artifact']:8} {milliseconds}", flush=True)
    print(json.dumps({"max_tokens": MAX_TOKENS, "rows": rows}))


if __name__ == "__main__":
    main()
