"""`bitmill up`: one command, every process, and what remains of them afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from app.cli.launch import free_port
from app.client import BitmillClient
from app.settings import Settings
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.installation import environment, wait_until


class Server:
    """A `bitmill up` of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = BitmillClient(self.url)
        command = [sys.executable, "-m", "app.cli.main", "up", "--port", str(self.port)]
        settings.logs_folder.mkdir(parents=True, exist_ok=True)
        with (settings.logs_folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment(settings), stdout=log, stderr=log)

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, (self.settings.logs_folder / "up.log").read_text()
            try:
                return bool(self.client.readiness()["workers"] >= 1)
            except httpx.TransportError:
                return False

        wait_until(ready, "Bitmill is ready")

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_for_job(self, job_id: str) -> dict[str, object]:
        def ended() -> dict[str, object] | None:
            job = self.client.job(job_id)
            return job if job["status"] not in ("queued", "running") else None

        return wait_until(ended, f"{job_id} ends")


@contextmanager
def serve(settings: Settings) -> Iterator[Server]:
    server = Server(settings)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=40)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_llama(root / "tiny", hidden_size=256, intermediate_size=512)
    tiny_llama(root / "small", hidden_size=512, intermediate_size=2048, layers=8, vocab_size=4096)
    return root


@pytest.fixture
def up_settings(settings: Settings, model_folder: Path) -> Settings:
    return settings.model_copy(update={"source_roots": (model_folder,)})


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_from_job_to_chat_to_silence(up_settings: Settings) -> None:
    with serve(up_settings) as server:
        results = []
        for method in (
            {"type": "gguf", "quantization": "Q8_0"},
            {"type": "bitsandbytes", "quantization": "nf4"},
        ):
            job = server.wait_for_job(server.client.submit("tiny", method)["id"])
            assert job["status"] == "succeeded", job["error"]
            results.append(str(job["quantized_model"]))
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            assert {model.id for model in client.models.list()} == {"tiny", *results}
            for model in ("tiny", *results):
                assert client.models.retrieve(model).id == model
                _chat(client, model)
        processes = [psutil.Process(server.process.pid), *server.descendants()]
        assert len(processes) >= 5, "up, api, worker, serving host and an engine"
    assert server.process.returncode == 0
    assert alive(processes) == []


def _chat(client: openai.OpenAI, model: str) -> None:
    messages: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)
    assert whole.model == model
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 8
    stream = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == (whole.choices[0].message.content or "")


def test_a_killed_server_leaves_nothing_behind_and_goes_on(up_settings: Settings) -> None:
    with serve(up_settings) as first:
        job_id = first.client.submit("small", {"type": "gguf", "quantization": "Q4_K_M"})["id"]
        wait_until(lambda: first.client.job(job_id)["progress"]["fraction"] > 0.1, "the job is under way")
        processes = first.descendants()
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
    wait_until(lambda: alive(processes) == [], "every process dies with the server", 10)
    with serve(up_settings) as second:
        job = second.wait_for_job(job_id)
        assert (job["status"], job["attempt"]) == ("succeeded", 2)
        assert [model["id"] for model in second.client.models()] == ["small", "small:gguf-Q4_K_M"]


def test_a_child_that_dies_is_started_again(up_settings: Settings) -> None:
    with serve(up_settings) as server:
        worker = next(child for child in server.descendants() if "celery" in " ".join(child.cmdline()))
        worker.kill()

        def replaced() -> bool:
            rows = server.client.workers()
            return any(f"-{worker.pid}-" not in str(row["id"]) for row in rows)

        wait_until(replaced, "another worker arrives")
        job = server.wait_for_job(server.client.submit("tiny", {"type": "none"})["id"])
        assert job["status"] == "succeeded"


def test_a_data_folder_serves_one_server_at_a_time(up_settings: Settings) -> None:
    with serve(up_settings):
        second = subprocess.run(
            [sys.executable, "-m", "app.cli.main", "up", "--port", str(free_port())],
            env=environment(up_settings), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert second.returncode == 1
    assert "another `bitmill up` uses" in second.stderr


def test_a_fresh_database_beside_an_old_folder_starts_nothing_and_deletes_nothing(
    up_settings: Settings, tmp_path: Path
) -> None:
    with serve(up_settings) as server:
        job = server.wait_for_job(server.client.submit("tiny", {"type": "none"})["id"])
        assert job["status"] == "succeeded"
        uploaded = server.client.upload_file(_jsonl(tmp_path), "evaluation")["id"]
    kept = _files(up_settings)
    assert any(uploaded in path.name for path in kept)
    wrong = up_settings.model_copy(update={"database_url": f"sqlite:///{tmp_path / 'fresh.sqlite3'}"})
    refused = _command(wrong, "up", "--port", str(free_port()))
    assert refused.returncode == 1
    assert "does not know 2" in refused.stderr
    assert "bitmill adopt" in refused.stderr
    for role in (["worker"], ["api", "--port", str(free_port())], ["serving", "--port", str(free_port())]):
        alone = _command(wrong, *role)
        assert alone.returncode != 0, role
        assert "bitmill adopt" in alone.stderr + alone.stdout, role
    assert _files(up_settings) == kept
    assert _command(wrong, "adopt").returncode == 0
    with serve(wrong) as adopted:
        assert adopted.client.models() == []
    assert _files(up_settings) == kept


def _jsonl(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    path.write_text('{"text": "Hello"}\n')
    return path


def _files(settings: Settings) -> set[Path]:
    """What users would miss."""
    return {path for folder in (settings.artifacts_folder, settings.files_folder) for path in folder.rglob("*")}


def _command(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli.main", *arguments]
    return subprocess.run(command, env=environment(settings), capture_output=True, text=True, timeout=60)


def test_a_job_is_accepted_as_soon_as_the_api_answers(up_settings: Settings) -> None:
    """No worker is there for some seconds yet."""
    server = Server(up_settings)
    try:
        wait_until(lambda: _answers(server), "the API answers")
        job = server.client.submit("tiny", {"type": "none"})
        assert job["status"] == "queued"
        assert job["progress"]["stage"] == "waiting for a worker with the method none"
        assert server.wait_for_job(job["id"])["status"] == "succeeded"
    finally:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=40)


def _answers(server: Server) -> bool:
    assert server.process.poll() is None
    try:
        return server.client.readiness()["status"] == "ok"
    except httpx.TransportError:
        return False


def test_a_port_that_is_taken_is_said(up_settings: Settings) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "app.cli.main", "up", "--port", str(port)],
            env=environment(up_settings), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1
    assert str(port) in done.stderr


def test_the_command_line_submits_and_follows(up_settings: Settings) -> None:
    with serve(up_settings) as server:
        started = time.monotonic()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "app.cli.main",
                "quantize",
                "tiny",
                *["--method", "none", "--set", "dtype=fp16", "--wait"],
            ],
            env=environment(up_settings) | {"BITMILL_URL": server.url},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "tiny:fp16"
        assert time.monotonic() - started < 120
        refused = subprocess.run(
            [sys.executable, "-m", "app.cli.main", "quantize", "tiny", "--set", "quantization=Q9"],
            env=environment(up_settings) | {"BITMILL_URL": server.url}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert refused.returncode == 1
        assert "Q4_K_M" in refused.stderr


def test_several_processes_share_the_api(settings: Settings) -> None:
    """They answer on one port, count together, and none outlives a kill of the whole."""
    shared = settings.model_copy(update={"api_processes": 3})
    with serve(shared) as server:
        requests = 60
        with httpx.Client(base_url=server.url) as client:
            for _ in range(requests):
                # A new connection each time, so that every process gets some.
                assert client.get("/v1/models", headers={"connection": "close"}).status_code == 200
            text = client.get("/metrics").text
        line = 'bitmill_http_requests_total{method="GET",route="/v1/models",status="200"}'
        assert f"{line} {float(requests)}" in text.splitlines()
        assert "bitmill_workers" in text
        children = server.descendants()
        server.process.kill()
        wait_until(lambda: not any(child.is_running() for child in children), "all processes are gone")
