"""Starting Bitmill's processes. Only their command lines are known here, nothing is imported from them."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TextIO

import click
import httpx

from app.connections import SERVERS_KEEP_SECONDS
from app.settings import Settings, get_settings

log = logging.getLogger("bitmill.up")

# How long the children may take to end by themselves before they are killed.
STOP_SECONDS = 15.0
# Of these, how long requests in flight may take; whoever waits for a model to load would wait for longer.
DRAIN_SECONDS = 8
WATCH_SECONDS = 0.2
# A child that ran for this long before it ended is started again at once.
STABLE_SECONDS = 30.0
LONGEST_BACKOFF_SECONDS = 30.0


# Where the processes of one API add up their metrics; the name is the Prometheus client's.
SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"


def api_command(host: str, port: int, processes: int = 1) -> list[str]:
    return [*_uvicorn("app.main:create_app", host, port), "--workers", str(processes)]


def api_environment(settings: Settings) -> dict[str, str]:
    """What several processes behind one port need beside the settings."""
    if settings.api_processes == 1:
        return {}
    return {SHARED_METRICS: tempfile.mkdtemp(prefix="bitmill-metrics-")}


def serving_command(host: str, port: int) -> list[str]:
    return _uvicorn("workers.serving.host:create_host", host, port)


def _uvicorn(factory: str, host: str, port: int) -> list[str]:
    options = {
        "--host": host,
        "--port": str(port),
        "--timeout-keep-alive": str(SERVERS_KEEP_SECONDS),
        "--timeout-graceful-shutdown": str(DRAIN_SECONDS),
    }
    given = [part for pair in options.items() for part in pair]
    return [sys.executable, "-m", "uvicorn", factory, "--factory", "--no-access-log", *given]


def worker_command(name: str) -> list[str]:
    """One job at a time, in a thread: the work itself is done by child processes."""
    options = [
        "--pool",
        "threads",
        "--concurrency",
        "1",
        "--hostname",
        f"{name}@%h",
        "--without-gossip",
        "--without-mingle",
    ]
    return [sys.executable, "-m", "celery", "--app", "workers.celery_app", "worker", *options]


def replace_process(command: list[str], environment: dict[str, str] | None = None) -> NoReturn:
    os.execve(command[0], command, os.environ | (environment or {}))  # noqa: S606 -- signals and exit code pass straight through


def migrate(environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-m", "app.persistence.schema"], env=environment)
    if done.returncode != 0:
        raise click.ClickException("the database could not be migrated; the lines above say why")


@dataclass
class Role:
    """One child of `bitmill up`, started again when it ends."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log_path: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    failures: int = 0

    def start(self) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as output:
            # Its own session: Ctrl-C reaches `bitmill up` alone, which then ends the children in order.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli.tether", str(os.getpid()), *self.command[1:]],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self.started_at = time.monotonic()

    def look(self) -> None:
        """Starts the child again if it has ended, later each time it fails soon after its start."""
        if self.process is None:
            if time.monotonic() >= self.restart_at:
                self.start()
        elif (code := self.process.poll()) is not None:
            stable = time.monotonic() - self.started_at > STABLE_SECONDS
            self.failures = 1 if stable else self.failures + 1
            delay = min(2.0 ** (self.failures - 1) - 1, LONGEST_BACKOFF_SECONDS)
            log.warning("%s ended with code %s; starting it again in %.0f s", self.name, code, delay)
            self.process, self.restart_at = None, time.monotonic() + delay


@dataclass
class Fleet:
    """All children together."""

    roles: list[Role] = field(default_factory=list)

    def start(self) -> None:
        for role in self.roles:
            role.start()

    def look(self) -> None:
        for role in self.roles:
            role.look()

    def stop(self) -> None:
        """Asks every child to end, then kills those that are still there after a while."""
        running = [role.process for role in self.roles if role.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for role in self.roles:
            shutil.rmtree(role.environment.get(SHARED_METRICS, ""), ignore_errors=True)


def embedded_environment(settings: Settings, port: int, serving_port: int) -> dict[str, str]:
    """What the children need to agree on."""
    return os.environ | {
        "BITMILL_DATA_DIR": str(settings.data_folder),
        "BITMILL_PORT": str(port),
        "BITMILL_SERVING_URL": f"http://127.0.0.1:{serving_port}",
        "PYTHONUNBUFFERED": "1",
    }


def create_fleet(settings: Settings, host: str, port: int, workers: int) -> Fleet:
    serving_port = free_port()
    environment = embedded_environment(settings, port, serving_port)
    own = {"api": api_environment(settings)}
    commands = {
        "api": api_command(host, port, settings.api_processes),
        "serving": serving_command("127.0.0.1", serving_port),
    }
    commands |= {f"worker-{number}": worker_command(f"worker-{number}") for number in range(1, workers + 1)}
    logs = settings.logs_folder
    return Fleet([
        Role(name, command, environment | own.get(name, {}), logs / f"{name}.log")
        for name, command in commands.items()
    ])  # fmt: skip


@contextmanager
def running_fleet(settings: Settings, host: str, port: int, workers: int) -> Iterator[Fleet]:
    """A migrated database, all children started, and all of them ended at the end, come what may."""
    with exclusive(settings.data_folder):
        migrate(embedded_environment(settings, port, 0))
        fleet = create_fleet(settings, host, port, workers)
        try:
            fleet.start()
            yield fleet
        finally:
            fleet.stop()


@contextmanager
def exclusive(folder: Path) -> Iterator[TextIO]:
    """Holds the data folder's lock: two embedded servers on one folder would fight over its broker."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise click.ClickException(
                f"another `bitmill up` uses {folder}; stop it, or choose another folder with --data"
            ) from error
        yield lock


def up(*, host: str | None, port: int | None, data: Path | None, workers: int) -> int:
    """Runs until SIGINT or SIGTERM. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Its line for each question whether the children are ready is nobody's news.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = get_settings().model_copy(update={"data_dir": data} if data else {})
    host, port = host or settings.host, settings.port if port is None else port
    port = port or free_port()
    require_free_port(host, port)
    stop = StopSignal()
    with running_fleet(settings, host, port, workers) as fleet:
        click.echo(f"Bitmill on http://{host}:{port} (data in {settings.data_folder}, logs in logs/ there)")
        if wait_until_ready(fleet, f"http://{host}:{port}", workers=workers, stop=stop):
            click.echo("ready; Ctrl-C stops it")
        while not stop.wait(WATCH_SECONDS):
            fleet.look()
        click.echo("stopping")
    return 0


class StopSignal:
    """Remembers that SIGINT or SIGTERM came."""

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.came = True

    def wait(self, seconds: float) -> bool:
        """Waits, or returns early (True) when the signal comes."""
        deadline = time.monotonic() + seconds
        while not self.came and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, WATCH_SECONDS))
        return self.came


def wait_until_ready(
    fleet: Fleet, url: str, *, workers: int, stop: StopSignal | None = None, timeout_seconds: float = 120.0
) -> bool:
    """True once the API answers and every worker has said what it can do."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if stop is not None and stop.came:
            return False
        fleet.look()
        try:
            answer = httpx.get(f"{url}/readyz", timeout=5).json()
            if answer.get("workers", 0) >= workers:
                return True
        except httpx.TransportError:
            log.debug("the API does not answer yet")
        time.sleep(WATCH_SECONDS)
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def require_free_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
            ) from error
