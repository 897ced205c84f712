"""Prometheus metrics of the serving host, under vLLM's names where vLLM has one, so that its dashboards work.

https://docs.vllm.ai/en/latest/design/metrics.html
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram

MODEL: Final = ("model_name", "engine")
SHORT: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
LONG: Final = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 300.0, 1800.0)


class ServingMetrics:
    """Counts as requests pass. What can be read off at a scrape, `app.serving_metrics` reads off the pool."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.prompt_tokens = Counter("vllm:prompt_tokens", "Prompt tokens processed.", MODEL, registry=registry)
        self.generation_tokens = Counter("vllm:generation_tokens", "Tokens generated.", MODEL, registry=registry)
        self.success = Counter(
            "vllm:request_success", "Requests answered, by how they ended.", (*MODEL, "finished_reason"),
            registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "vllm:time_to_first_token_seconds", "From a request to its first token.", MODEL, buckets=SHORT,
            registry=registry,
        )  # fmt: skip
        self.inter_token = Histogram(
            "vllm:inter_token_latency_seconds", "Between two pieces of a streamed answer.", MODEL, buckets=SHORT,
            registry=registry,
        )  # fmt: skip
        self.latency = Histogram(
            "vllm:e2e_request_latency_seconds", "From a request to the end of its answer.", MODEL, buckets=LONG,
            registry=registry,
        )  # fmt: skip
        self.load_seconds = Histogram(
            "bitmill_model_load_seconds", "From the start of an engine to its first answer.", MODEL, buckets=LONG,
            registry=registry,
        )  # fmt: skip
        self.evictions = Counter(
            "bitmill_model_evictions", "Idle models that made room for others.", ("model_name",), registry=registry
        )
        self.failures = Counter(
            "bitmill_engine_failures", "Engines that failed to load or died; the next request starts another.", MODEL,
            registry=registry,
        )  # fmt: skip
        self.hangs = Counter(
            "bitmill_engine_hangs", "Engines that were ended because they got nowhere.", (*MODEL, "reason"),
            registry=registry,
        )  # fmt: skip
        self.refusals = Counter(
            "bitmill_requests_refused", "Requests that were told to come again, or failed here.",
            ("model_name", "code"), registry=registry,
        )  # fmt: skip

    def loaded(self, model: str, engine: str, seconds: float) -> None:
        self.load_seconds.labels(model, engine).observe(seconds)

    def evicted(self, model: str) -> None:
        self.evictions.labels(model).inc()

    def failed(self, model: str, engine: str) -> None:
        self.failures.labels(model, engine).inc()

    def hung(self, model: str, engine: str, reason: str) -> None:
        self.hangs.labels(model, engine, reason).inc()

    def refused(self, model: str, code: str) -> None:
        self.refusals.labels(model, code).inc()


class Observation:
    """One request as its answer passes: call it with each object of the answer, and `end` at its end."""

    def __init__(
        self, metrics: ServingMetrics, model: str, engine: str, *, streamed: bool, started: float | None = None
    ) -> None:
        """`started` is when the request came, on the monotonic clock: it may have waited for a slot or a load."""
        self._metrics = metrics
        self._streamed = streamed
        self._labels = (model, engine)
        # Each piece is observed: what its labels stand for is looked up once.
        self._first_token = metrics.first_token.labels(model, engine)
        self._inter_token = metrics.inter_token.labels(model, engine)
        self._started = time.monotonic() if started is None else started
        self._begun = False
        self._last: dict[int, float] = {}  # when each choice had its latest piece
        self._reasons: dict[int, str] = {}
        self._usage: dict[str, Any] = {}
        self._ended = False

    def __call__(self, answer: dict[str, Any]) -> None:
        """Takes a whole answer, or one event of a streamed one."""
        if isinstance(answer.get("usage"), dict):
            self._usage = answer["usage"]
        for choice in answer.get("choices") or ():
            index = choice.get("index", 0)
            if choice.get("finish_reason"):
                self._reasons[index] = str(choice["finish_reason"])
            if self._streamed and _says_something(choice):
                self._piece(index)
        if answer.get("object") == "list":  # vectors, which have no finish reason of their own
            self._reasons[0] = "stop"

    def _piece(self, index: int) -> None:
        now = time.monotonic()
        if not self._begun:
            self._first_token.observe(now - self._started)
        elif index in self._last:
            self._inter_token.observe(now - self._last[index])
        self._begun = True
        self._last[index] = now

    def left(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Counts a request whose client left before its answer: for an exit stack, which says what ended it."""
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self.end()

    def end(self) -> None:
        """Counts the request once; one without a finish reason was broken off."""
        if self._ended:
            return
        self._ended = True
        self._metrics.prompt_tokens.labels(*self._labels).inc(self._usage.get("prompt_tokens") or 0)
        self._metrics.generation_tokens.labels(*self._labels).inc(self._usage.get("completion_tokens") or 0)
        self._metrics.latency.labels(*self._labels).observe(time.monotonic() - self._started)
        self._metrics.success.labels(*self._labels, next(iter(self._reasons.values()), "abort")).inc()


def _says_something(choice: dict[str, Any]) -> bool:
    """Whether there is a token in it: some servers open a stream with a role before they have one."""
    delta = choice.get("delta") or {}
    told = ("content", "reasoning_content", "reasoning", "tool_calls")
    return bool(choice.get("text") or choice.get("logprobs") or any(delta.get(name) for name in told))
