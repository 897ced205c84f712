"""Deadlines, full queues, and what is counted meanwhile: through the host, and through the API before it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.fakes.engine import FakeEngine
from tests.unit.serving.conftest import MODEL
from tests.unit.serving.test_host import CHAT, body, error_of, post, until
from workers.serving.engines.base import EngineOptions
from workers.serving.pool import ModelPool
from workers.serving.process import RunningEngine


@pytest.fixture
def serving_settings(settings: Settings) -> Settings:
    limits = {
        "serving_slots": 1,
        "serving_queue": 1,
        "serving_first_token_timeout_seconds": 1.0,
        "serving_total_timeout_seconds": 1.5,
    }
    return settings.model_copy(update=limits)


def events(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]


def test_a_full_queue_is_a_429_with_retry_after(base_url: str, tmp_path: Path, pool: ModelPool) -> None:
    gate = tmp_path / "gate"
    with ThreadPoolExecutor(8) as clients:
        # One runs, two are ready ahead, one waits.
        waiting = [clients.submit(post, base_url, user=str(gate)) for _ in range(4)]
        until(lambda: pool.deployments and pool.deployments[0].admission.waiting == 1)
        refused = post(base_url)
        gate.touch()
        assert [each.result().status_code for each in waiting] == [200] * 4
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "rate_limit_exceeded"
    assert int(refused.headers["retry-after"]) >= 1


def test_a_request_for_many_choices_takes_a_slot_for_each(
    base_url: str, tmp_path: Path, pool: ModelPool, fake_engine: FakeEngine
) -> None:
    gate = tmp_path / "gate"
    many = {"model": MODEL, "prompt": list("abcdefgh"), "n": 2, "user": str(gate)}
    with ThreadPoolExecutor(1) as client:
        long = client.submit(httpx.post, base_url + "/v1/completions", json=many, timeout=30)
        until(lambda: fake_engine.events("choices"))
        # Another's takes what is ready ahead, though fifteen choices wait.
        assert post(base_url).status_code == 200
        assert len(fake_engine.events("choices")) == 2
        gate.touch()
        answer = long.result()
    assert [choice["index"] for choice in answer.json()["choices"]] == list(range(16))
    assert answer.json()["usage"] == {"prompt_tokens": 3 * 8, "completion_tokens": 2 * 16, "total_tokens": 56}
    assert fake_engine.events("choices") == ["choices 1"] * 17
    until(lambda: pool.view()[0]["slots_in_use"] == 0)


@pytest.mark.parametrize("left", [0, 5])
def test_a_client_that_leaves_a_long_request_leaves_its_slots(
    host_url: str, tmp_path: Path, pool: ModelPool, fake_engine: FakeEngine, left: int
) -> None:
    many = {"model": MODEL, "prompt": list("abcdefgh"), "user": str(tmp_path / "never"), "stream": left > 0}
    patience = httpx.Timeout(10, read=1)
    with (
        suppress(httpx.ReadTimeout),
        httpx.stream("POST", host_url + "/v1/completions", json=many, timeout=patience) as answer,
    ):
        for _ in zip(range(left), answer.iter_bytes(), strict=False):
            continue
    until(lambda: pool.view()[0]["in_flight"] == pool.deployments[0].admission.running == 0)
    assert len(fake_engine.events("choices")) == 1


@pytest.mark.parametrize(
    ("path", "fields", "param", "told"),
    [
        ("/v1/completions", {"prompt": ["a"] * 500, "n": 16}, "prompt", "500 prompts, which with n = 16 are 8000"),
        ("/v1/completions", {"prompt": [[1]] * 513}, "prompt", "may ask for 512; send several requests"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input", "2049 texts, and one request may have 2048"),
    ],
)
def test_what_one_request_may_ask_for_has_a_limit(
    base_url: str, path: str, fields: dict[str, Any], param: str, told: str, fake_engine: FakeEngine
) -> None:
    answer = httpx.post(base_url + path, json={"model": MODEL, **fields}, timeout=30)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert told in error_of(answer)["message"]
    assert fake_engine.events("request") == []


def test_an_answer_that_does_not_begin_is_a_504(base_url: str, pool: ModelPool) -> None:
    answer = post(base_url, stream=True, user="silent")
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "engine_timeout"
    assert "BITMILL_SERVING_FIRST_TOKEN_TIMEOUT_SECONDS" in error_of(answer)["message"]
    until(lambda: pool.view()[0]["in_flight"] == 0)


def test_an_answer_that_takes_too_long_is_a_504(base_url: str, tmp_path: Path, pool: ModelPool) -> None:
    answer = post(base_url, user=str(tmp_path / "never"))
    assert answer.status_code == 504
    assert "BITMILL_SERVING_TOTAL_TIMEOUT_SECONDS" in error_of(answer)["message"]
    until(lambda: pool.view()[0]["in_flight"] == 0)


def test_a_stream_that_takes_too_long_ends_with_an_error(
    base_url: str, tmp_path: Path, pool: ModelPool, fake_engine: FakeEngine
) -> None:
    answer = post(base_url, stream=True, user=str(tmp_path / "never"))
    assert answer.status_code == 200
    assert json.loads(events(answer)[-1])["error"]["code"] == "engine_timeout"
    until(lambda: fake_engine.events("disconnected") and pool.view()[0]["in_flight"] == 0)


def test_usage_is_told_to_those_who_ask(base_url: str) -> None:
    *chunks, usage, done = events(post(base_url, stream=True, stream_options={"include_usage": True}))
    assert done == "[DONE]"
    assert json.loads(usage)["usage"]["total_tokens"] == 5
    assert all(json.loads(chunk)["choices"] for chunk in chunks)


def test_usage_is_not_told_to_others(base_url: str) -> None:
    *chunks, done = events(post(base_url, stream=True))
    assert done == "[DONE]"
    assert all(json.loads(chunk)["choices"] and "usage" not in json.loads(chunk) for chunk in chunks)


def test_the_time_to_stay_is_for_the_host_alone(base_url: str, pool: ModelPool) -> None:
    assert post(base_url, keep_alive="0s").status_code == 200
    until(lambda: pool.view() == [])
    for endless in ('"soon"', "1e999", "Infinity", "NaN", "9" * 400, f'"{"9" * 400}h"'):
        raw = json.dumps(body(keep_alive=0)).replace('"keep_alive": 0', f'"keep_alive": {endless}')
        refused = httpx.post(base_url + CHAT, content=raw, timeout=30)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "keep_alive"), endless


def test_requests_are_counted_under_vllms_names(host_url: str) -> None:
    post(host_url)
    post(host_url, stream=True)
    post(host_url, user="refuse")
    text = httpx.get(f"{host_url}/metrics").text
    labels = f'{{engine="fake",model_name="{MODEL}"}}'
    ended = f'engine="fake",finished_reason="%s",model_name="{MODEL}"'
    for line in (
        f"vllm:prompt_tokens_total{labels} 6.0",
        f"vllm:generation_tokens_total{labels} 4.0",
        f"vllm:request_success_total{{{ended % 'stop'}}} 1.0",
        f"vllm:request_success_total{{{ended % 'length'}}} 1.0",
        f"vllm:time_to_first_token_seconds_count{labels} 1.0",
        f"vllm:e2e_request_latency_seconds_count{labels} 2.0",
        f"vllm:num_requests_running{labels} 0.0",
        f"vllm:num_requests_waiting{labels} 0.0",
        f"bitmill_model_load_seconds_count{labels} 1.0",
    ):
        assert line in text.splitlines(), line


def test_a_stream_that_its_client_leaves_counts_as_aborted(host_url: str, tmp_path: Path, pool: ModelPool) -> None:
    request = body(stream=True, user=str(tmp_path / "never"))
    with httpx.stream("POST", host_url + CHAT, json=request, timeout=30) as answer:
        next(answer.iter_bytes())
    until(lambda: pool.view()[0]["in_flight"] == 0)
    assert 'finished_reason="abort"' in httpx.get(f"{host_url}/metrics").text


def test_an_answer_that_its_client_does_not_wait_for_counts_as_aborted(
    host_url: str, tmp_path: Path, pool: ModelPool, fake_engine: FakeEngine
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(host_url + CHAT, json=body(user=str(tmp_path / "never")), timeout=1)
    until(lambda: fake_engine.events("request") and pool.view()[0]["in_flight"] == 0)
    assert 'finished_reason="abort"' in httpx.get(f"{host_url}/metrics").text


def test_metrics_hold_up_nothing_and_survive_an_engine_of_another_version(
    host_url: str, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_known(self: FakeEngine, answer: str, options: EngineOptions) -> float:
        raise KeyError("is_processing")

    def resident(self: RunningEngine) -> int:
        threads.append(threading.current_thread().name)
        return 42

    threads: list[str] = []
    post(host_url)
    monkeypatch.setattr(FakeEngine, "cache_usage_path", "/usage")
    monkeypatch.setattr(FakeEngine, "cache_usage", not_known)
    monkeypatch.setattr(RunningEngine, "resident_bytes", resident)
    answer = httpx.get(f"{host_url}/metrics")
    assert answer.status_code == 200
    assert "bitmill_model_resident_bytes" in answer.text
    assert threads
    assert not any("run" in name for name in threads)  # as the server's is called


def test_waiting_for_a_model_belongs_to_the_time_of_its_first_token(host_url: str, pool: ModelPool) -> None:
    post(host_url, stream=True)
    lines = dict(line.rsplit(" ", 1) for line in httpx.get(f"{host_url}/metrics").text.splitlines() if line[0] != "#")
    labels = f'{{engine="fake",model_name="{MODEL}"}}'
    loading = pool.view()[0]["load_seconds"]
    assert float(lines[f"vllm:time_to_first_token_seconds_sum{labels}"]) > loading
    assert float(lines[f"vllm:e2e_request_latency_seconds_sum{labels}"]) > loading
