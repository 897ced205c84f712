"""Half an hour of clients that come, stream, leave and unload: is memory flat, does every request get its answer?

`python benchmarks/soak.py [--minutes 30] [--quick]`. Three models share two places, so they keep being loaded and
evicted. A request is lost if it ends in anything but its answer; clients that hang up on purpose are counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import psutil
from running import running_bitmill

from app.cli.launch import Fleet

METHODS: Final[tuple[dict[str, Any], ...]] = (
    {"type": "gguf", "quantization": "Q4_K_M"},
    {"type": "none", "dtype": "bf16"},
    {"type": "bitsandbytes", "quantization": "nf4"},
)
CLIENTS: Final = 8
SAMPLE_SECONDS: Final = 5.0
UNLOAD_SECONDS: Final = (20.0, 40.0)
LEAVES: Final = 0.1  # the share of clients that hang up


@dataclass
class Soak:
    url: str
    models: list[str]
    until: float
    random: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311 -- a load, no secret
    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until

    async def run(self, fleet: Fleet) -> None:
        limits = httpx.Limits(max_connections=None)
        # One task that fails ends the others before the connections at which they wait are closed.
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=300, limits=limits) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(CLIENTS):
                tasks.create_task(self.one_client(client))
            tasks.create_task(self.unload_now_and_then(client))
            tasks.create_task(self.sample(client, fleet))

    async def one_client(self, client: httpx.AsyncClient) -> None:
        while not self.over:
            body = {
                "model": self.random.choice(self.models),
                "messages": [{"role": "user", "content": f"Tell me about the number {self.random.random()}."}],
                "max_tokens": self.random.randint(4, 48),
                "stream": self.random.random() < 0.5,
            }
            leaves = body["stream"] and self.random.random() < LEAVES * 2
            try:
                outcome = await (
                    self.stream(client, body, leaves=leaves) if body["stream"] else self.whole(client, body)
                )
            except httpx.HTTPError as error:
                outcome = f"lost: {error!r}"
            if outcome.startswith("lost"):
                self.lost.append(outcome)
                print(outcome, flush=True)
            self.outcomes[outcome.partition(":")[0]] += 1

    async def whole(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        answer = await client.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            return f"lost: {answer.status_code} {answer.text[:300]}"
        return "answered" if answer.json()["choices"][0]["finish_reason"] in ("stop", "length") else "lost: no end"

    async def stream(self, client: httpx.AsyncClient, body: dict[str, Any], *, leaves: bool) -> str:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return f"lost: {answer.status_code} {(await answer.aread())[:300]!r}"
            text = ""
            async for line in answer.aiter_lines():
                text += line
                if leaves and "content" in text:
                    return "left"
        return "answered" if text.endswith("data: [DONE]") and '"error"' not in text else f"lost: {text[-300:]}"

    async def unload_now_and_then(self, client: httpx.AsyncClient) -> None:
        while not self.over:
            await asyncio.sleep(min(self.random.uniform(*UNLOAD_SECONDS), max(self.until - time.monotonic(), 0)))
            for view in (await client.get("/v1/deployments")).json()["data"][:1]:
                answer = await client.delete(f"/v1/deployments/{view['model']}")
                self.outcomes["unloads"] += answer.status_code == 200

    async def sample(self, client: httpx.AsyncClient, fleet: Fleet) -> None:
        started = time.monotonic()
        while not self.over:
            for role in fleet.roles:
                if role.name in ("api", "serving") and role.process is not None:
                    size = psutil.Process(role.process.pid).memory_info().rss
                    self.memory.setdefault(role.name, []).append((time.monotonic() - started, size))
            for view in (await client.get("/v1/deployments")).json()["data"]:
                if view["state"] == "ready" and view["requests"] > 20:
                    size = view["memory"]["resident_bytes"]
                    self.memory.setdefault(view["model"], []).append((time.monotonic() - started, size))
            await asyncio.sleep(SAMPLE_SECONDS)


def growth(samples: list[tuple[float, int]]) -> float:
    """The median of the last third over the median of the second: the first third warms up."""
    third = len(samples) // 3
    if not third:
        return 1.0
    middle, last = samples[third : 2 * third], samples[2 * third :]
    return statistics.median(size for _, size in last) / statistics.median(size for _, size in middle)


def main() -> None:
    # Ended from outside it still ends the servers that it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--quick", action="store_true", help="two minutes")
    arguments = parser.parse_args()
    minutes = 2.0 if arguments.quick else arguments.minutes
    with running_bitmill() as bitmill:
        names = [bitmill.quantize(method) for method in METHODS]
        soak = Soak(bitmill.url, names, time.monotonic() + 60 * minutes)
        asyncio.run(soak.run(bitmill.fleet))
        processes = [psutil.Process(role.process.pid) for role in bitmill.fleet.roles if role.process is not None]
        processes += [child for process in processes for child in process.children(recursive=True)]
        metrics = httpx.get(f"{bitmill.url}/v1/deployments").json()["data"]
    orphans = [process.pid for process in processes if process.is_running()]
    rows = [
        {"process": name, "samples": len(samples), "last_bytes": samples[-1][1], "growth": growth(samples)}
        for name, samples in soak.memory.items()
    ]
    for row in rows:
        print(f"{row['process']:45} {row['last_bytes'] / 1e6:7.0f} MB  grew × {row['growth']:.3f}")
    print(f"{minutes:g} minutes: {dict(soak.outcomes)}, lost {len(soak.lost)}, orphan processes {len(orphans)}")
    still = sum(view.get("in_flight", 0) for view in metrics)
    summary = {"minutes": minutes, **soak.outcomes, "lost": len(soak.lost), "orphans": len(orphans), "in_flight": still}
    print(json.dumps({"summary": summary, "rows": rows}))
    assert not soak.lost
    assert not orphans


if __name__ == "__main__":
    main()
