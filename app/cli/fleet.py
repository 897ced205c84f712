"""The children of `bitmill up`: started together, started again when they end, and ended together."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("bitmill.up")

# How long the children may take to end by themselves before they are killed.
STOP_SECONDS = 15.0
# A child that ran for this long before it ended is started again at once.
STABLE_SECONDS = 30.0
LONGEST_BACKOFF_SECONDS = 30.0
# Where the processes of one API add up their metrics; the name is the Prometheus client's.
SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"


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

    def workers_are_among(self, ids: set[str]) -> bool:
        """Whether each worker that was started here is one of those with these ids, which begin with host and process.

        The row of a worker that was killed a moment ago still looks alive.
        """
        workers = [role.process for role in self.roles if role.name.startswith("worker-")]
        begins = [f"{socket.gethostname()}-{process.pid}-" if process else None for process in workers]
        return all(begin and any(each.startswith(begin) for each in ids) for begin in begins)

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
