"""Starting Bitmill's processes. Only their command lines are known here, nothing is imported from them."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TextIO

import click
import httpx

from app.cli.fleet import SHARED_METRICS, Fleet, Role
from app.client import BitmillClient, RequestFailed
from app.connections import SERVERS_KEEP_SECONDS
from app.settings import Settings, get_settings

log = logging.getLogger("bitmill.up")

# Of the time that children have to end, how long requests in flight may take; whoever waits for a model to load
# would wait for longer.
DRAIN_SECONDS = 8
WATCH_SECONDS = 0.2


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
        "--http": "app.http_protocol:BoundedProtocol",
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


def require_installation(environment: dict[str, str]) -> None:
    """Before any process is started on a database and a data folder that do not belong together."""
    _run_on_installation("check", environment)


def adopt(data: Path | None) -> str:
    """Has the database keep the data folder. Returns what there is to tell."""
    settings = get_settings().model_copy(update={"data_dir": data} if data else {})
    environment = os.environ | {"BITMILL_DATA_DIR": str(settings.data_folder)}
    with exclusive(settings.data_folder):
        migrate(environment)
        return _run_on_installation("adopt", environment)


def _run_on_installation(command: str, environment: dict[str, str]) -> str:
    argv = [sys.executable, "-m", "app.installation", command]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise click.ClickException(done.stderr.strip())
    return done.stdout.strip()


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
        environment = embedded_environment(settings, port, 0)
        migrate(environment)
        require_installation(environment)
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


def count_cards() -> int:
    """The machine's GPUs that are visible here, each of which a worker can have for itself."""
    done = subprocess.run([sys.executable, "-m", "workers.devices"], capture_output=True, text=True)
    if done.returncode != 0:
        raise click.ClickException(f"the machine's GPUs could not be counted: {done.stderr.strip()}")
    return int(done.stdout)


def up(*, host: str | None, port: int | None, data: Path | None, workers: int | None) -> int:
    """Runs until SIGINT or SIGTERM. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Its line for each question whether the children are ready is nobody's news.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = get_settings().model_copy(update={"data_dir": data} if data else {})
    host, port = host or settings.host, settings.port if port is None else port
    port = port or free_port()
    require_free_port(host, port)
    key = settings.api_keys[0] if settings.api_keys else None
    stop = StopSignal()
    with running_fleet(settings, host, port, workers or max(count_cards(), 1)) as fleet:
        click.echo(f"Bitmill on http://{host}:{port} (data in {settings.data_folder}, logs in logs/ there)")
        if wait_until_ready(fleet, f"http://{host}:{port}", key=key, stop=stop):
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
    fleet: Fleet, url: str, *, key: str | None = None, stop: StopSignal | None = None, timeout_seconds: float = 120.0
) -> bool:
    """True once the API answers and each of the fleet's own workers has said what it can do."""
    deadline = time.monotonic() + timeout_seconds
    with BitmillClient(url, key) as client:
        while time.monotonic() < deadline:
            if stop is not None and stop.came:
                return False
            fleet.look()
            if fleet.workers_are_among(_live_workers(client)):
                return True
            time.sleep(WATCH_SECONDS)
    return False


def _live_workers(client: BitmillClient) -> set[str]:
    try:
        return {str(row["id"]) for row in client.workers()}
    except (httpx.TransportError, RequestFailed) as error:
        log.debug("the API does not answer yet: %s", error)
        return set()


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
