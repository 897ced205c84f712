"""What is counted of an answer as it passes."""

from __future__ import annotations

import time
from typing import Any

from workers.serving.metrics import Observation, ServingMetrics

LABELS = {"model_name": "m", "engine": "e"}


def piece(index: int, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": None}]}


def value(metrics: ServingMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, LABELS | labels) or 0.0


def test_a_role_is_no_token() -> None:
    metrics = ServingMetrics()
    seen = Observation(metrics, "m", "e", streamed=True)
    seen(piece(0, role="assistant", content=""))
    time.sleep(0.05)
    seen(piece(0, content="Hi"))
    assert value(metrics, "vllm:time_to_first_token_seconds_sum") >= 0.05
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 0


def test_the_pieces_of_each_choice_are_timed_by_themselves() -> None:
    metrics = ServingMetrics()
    seen = Observation(metrics, "m", "e", streamed=True)
    for index in (0, 1, 0, 1):
        seen(piece(index, content="a"))
        time.sleep(0.02)
    assert value(metrics, "vllm:time_to_first_token_seconds_count") == 1
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 2
    assert value(metrics, "vllm:inter_token_latency_seconds_sum") >= 0.08


def test_vectors_are_an_answer_that_was_not_broken_off() -> None:
    metrics = ServingMetrics()
    seen = Observation(metrics, "m", "e", streamed=False)
    seen({"object": "list", "data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}})
    seen.end()
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 1
    assert value(metrics, "vllm:prompt_tokens_total") == 3
