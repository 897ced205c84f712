"""Engines that stop getting anywhere without ending: real processes, stopped or silent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from app.cli.launch import free_port
from app.persistence.unit_of_work import Database
from app.settings import RemoteServer, Settings
from tests.fakes.engine import FakeEngine, planner_for
from tests.unit.serving.conftest import MODEL, add_model, served
from tests.unit.serving.test_host import error_of, post, until
from workers.serving.host import create_host
from workers.serving.pool import ModelPool


@pytest.fixture
def serving_settings(settings: Settings) -> Settings:
    limits = {
        "serving_slots": 1,
        "serving_probe_seconds": 0.1,
        "serving_probe_timeout_seconds": 1.0,
        "serving_hung_after_probes": 2,
        "serving_stall_seconds": 2.0,
        "serving_first_token_timeout_seconds": 60.0,
    }
    return settings.model_copy(update=limits)


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def metric(url: str, line: str) -> bool:
    return line in httpx.get(f"{url}/metrics").text.splitlines()


def answered_by(url: str) -> int:
    pid: int = post(url).json()["pid"]
    return pid


def test_an_engine_that_is_stopped_is_replaced(
    host_url: str, tmp_path: Path, pool: ModelPool, fake_engine: FakeEngine, clients: ThreadPoolExecutor
) -> None:
    def asked(stream: bool) -> Future[httpx.Response]:
        return clients.submit(post, host_url, user=str(tmp_path / "never"), stream=stream)

    # One works, two are ready ahead, two wait.
    waiting = [asked(stream=False) for _ in range(5)]
    until(lambda: pool.deployments and pool.deployments[0].admission.waiting == 2)
    os.kill(fake_engine.pids()[0], signal.SIGSTOP)
    for answer in (each.result() for each in waiting):
        assert answer.status_code == 502
        assert error_of(answer)["code"] == "engine_failed"
        assert "left 2 health probes in a row unanswered" in error_of(answer)["message"]
    assert answered_by(host_url) == fake_engine.pids()[1]
    labels = f'engine="fake",model_name="{MODEL}"'
    assert metric(host_url, f'bitmill_engine_hangs_total{{{labels},reason="probes"}} 1.0')
    assert metric(host_url, f"bitmill_engine_failures_total{{{labels}}} 1.0")


def test_a_stream_that_hangs_ends_with_an_error(
    host_url: str, tmp_path: Path, fake_engine: FakeEngine, clients: ThreadPoolExecutor
) -> None:
    streaming = clients.submit(post, host_url, stream=True, user=str(tmp_path / "never"))
    until(lambda: fake_engine.events("request"))
    os.kill(fake_engine.pids()[0], signal.SIGSTOP)
    last = streaming.result().text.strip().splitlines()[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "engine_failed"
    assert "health probes" in error["message"]


def test_an_idle_engine_that_is_stopped_is_replaced_before_anybody_asks(
    host_url: str, pool: ModelPool, fake_engine: FakeEngine
) -> None:
    first = answered_by(host_url)
    os.kill(first, signal.SIGSTOP)
    until(lambda: pool.view() == [])
    assert answered_by(host_url) == fake_engine.pids()[1] != first


def test_engines_that_hang_again_and_again_are_tried_with_pauses(
    host_url: str, tmp_path: Path, pool: ModelPool, fake_engine: FakeEngine, clients: ThreadPoolExecutor
) -> None:
    for number in range(3):
        hanging = clients.submit(post, host_url, user=str(tmp_path / "never"))
        until(lambda n=number: len(fake_engine.events("request")) == n + 1)  # type: ignore[misc]
        os.kill(fake_engine.pids()[number], signal.SIGSTOP)
        assert hanging.result().status_code == 502
        until(lambda: pool.view() == [])
        assert "unanswered" in (pool.why_not(MODEL) or "")
        if number < 2:
            until(lambda: pool._failures[MODEL].retry_at < time.monotonic())
    refused = post(host_url)
    assert refused.status_code == 503
    assert "failed 3 times in a row" in error_of(refused)["message"]
    assert "left 2 health probes in a row unanswered" in error_of(refused)["message"]


def test_an_engine_whose_generation_hangs_is_replaced(
    host_url: str, fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server answers every probe, as llama.cpp's does from a thread of its own."""
    monkeypatch.setattr(FakeEngine, "progress_path", "/health")  # which never changes
    answer = post(host_url, user="silent")
    assert answer.status_code == 502
    assert "got nowhere for" in error_of(answer)["message"]
    assert answered_by(host_url) == fake_engine.pids()[1]


def test_an_engine_that_is_only_slow_is_left_alone(
    host_url: str, tmp_path: Path, fake_engine: FakeEngine, clients: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than the limit it sends nothing, but what it has done grows."""
    monkeypatch.setattr(FakeEngine, "progress_path", "/clock")
    gate, begun = tmp_path / "gate", time.monotonic()
    slow = clients.submit(post, host_url, user=str(gate))
    until(lambda: time.monotonic() - begun > 5)
    gate.touch()
    assert slow.result().status_code == 200
    assert len(fake_engine.pids()) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_requests_that_run_out_of_time_in_a_row_end_the_engine(
    serving_settings: Settings, sqlite_database: Database, fake_engine: FakeEngine, stream: bool
) -> None:
    short = {"serving_first_token_timeout_seconds": 0.5, "serving_total_timeout_seconds": 0.5}
    settings = serving_settings.model_copy(update=short)
    add_model(sqlite_database, settings, MODEL)
    pool = ModelPool(settings, planner=planner_for(fake_engine, settings))
    with served(create_host(settings, pool=pool)) as url:
        for _ in range(2):
            assert post(url, user="silent", stream=stream).status_code == 504
        until(lambda: pool.view() == [])
        labels = f'engine="fake",model_name="{MODEL}",reason="timeouts"'
        assert metric(url, f"bitmill_engine_hangs_total{{{labels}}} 1.0")
        assert answered_by(url) == fake_engine.pids()[1]


def test_a_remote_server_that_hangs_keeps_nobody_waiting(
    serving_settings: Settings, sqlite_database: Database, tmp_path: Path, clients: ThreadPoolExecutor
) -> None:
    """There is no process to end: the connection is, and the next request looks whether the server is back."""
    port, events = free_port(), tmp_path / "events"
    variables = {"FAKE_ENGINE_KEY": "k", "FAKE_ENGINE_EVENTS": str(events), "FAKE_ENGINE_BROKEN": str(tmp_path / "no")}
    command = [sys.executable, "-m", "tests.fakes.engine_process", "127.0.0.1", str(port)]
    there = subprocess.Popen(command, env=os.environ | variables | {"FAKE_ENGINE_LOAD_GATE": ""})
    server = RemoteServer(url=f"http://127.0.0.1:{port}/v1", api_key=SecretStr("k"))
    settings = serving_settings.model_copy(update={"remotes": {"cluster": server}})
    try:
        with served(create_host(settings)) as url:
            until(lambda: _listens(port))
            remote = {"server": "cluster", "model": "engine-name"}
            assert httpx.post(f"{url}/v1/deployments", json={"model": MODEL, "remote": remote}).status_code == 201
            hanging = [
                clients.submit(post, url, user=str(tmp_path / "never"), stream=stream) for stream in (False, True)
            ]
            until(lambda: events.read_text().count("request") == 2)
            there.send_signal(signal.SIGSTOP)
            whole, stream = (each.result() for each in hanging)
            assert whole.status_code == 502
            assert "health probes" in error_of(whole)["message"]
            assert "health probes" in stream.text
            there.send_signal(signal.SIGCONT)
            assert post(url).status_code == 200
    finally:
        there.kill()
        there.wait()


def _listens(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/models").is_success
    except httpx.TransportError:
        return False
