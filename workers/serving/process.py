"""One running engine: a process group of its own, a log, and a port that answers when the model is loaded."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import httpx
import psutil

from app.domain.errors import EngineFailed
from workers.serving.engines.base import CLOSING, Address, EngineProcess, Told

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
LOOPBACK = "127.0.0.1"
LOG_TAIL_LINES = 20
LAUNCHER = "workers.serving.launch"
# Reading an adapter takes seconds from a slow disk.
TOLD_SECONDS = 120.0


def new_address() -> Address:
    """A port that was free a moment ago, and a fresh key. An engine that finds the port taken dies of it."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    return Address(LOOPBACK, port, secrets.token_urlsafe(32))


class Running(Protocol):
    """A loaded model, wherever it is: what the host asks of it."""

    @property
    def alive(self) -> bool: ...

    @property
    def ended(self) -> asyncio.Future[int]:
        """Completes when it is gone, for whatever reason."""

    @property
    def pid(self) -> int | None: ...

    @property
    def upstream_model(self) -> str:
        """What the engine calls the model."""

    @property
    def headers(self) -> dict[str, str]:
        """What a request to it must say."""

    def url(self, path: str) -> str: ...

    async def wait_until_healthy(self, timeout_seconds: float) -> None: ...

    async def answers(self, client: httpx.AsyncClient) -> bool:
        """Whether it says, within the client's time-out, that it is well."""

    async def kill(self) -> None: ...

    def how_it_ended(self) -> str: ...

    def log_tail(self) -> str: ...

    def pids(self) -> set[int]: ...

    def resident_bytes(self) -> int | None: ...


class RunningEngine:
    """Started by `start`; `ended` completes when the process does, for whatever reason.

    It has a folder of its own for temporary files, such as vLLM's sockets: killed, it takes none of them away itself.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        command: EngineProcess,
        address: Address,
        log: Path,
        scratch: TemporaryDirectory[str],
    ):
        self.process = process
        self.command = command
        self.address = address
        self.log = log
        self.scratch = scratch
        self.ended: asyncio.Future[int] = asyncio.create_task(process.wait())

    @classmethod
    async def start(cls, command: EngineProcess, address: Address, log: Path) -> RunningEngine:
        log.parent.mkdir(parents=True, exist_ok=True)
        scratch = TemporaryDirectory(prefix="bitmill-engine-", ignore_cleanup_errors=True)
        argv = [sys.executable, "-m", LAUNCHER, str(os.getpid()), scratch.name, *command.argv]
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **command.environment, "TMPDIR": scratch.name},
                start_new_session=True,
            )
        return cls(process, command, address, log, scratch)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    @property
    def upstream_model(self) -> str:
        return self.command.upstream_model

    @property
    def headers(self) -> dict[str, str]:
        key = {"authorization": f"Bearer {self.address.api_key}"}
        return key if self.command.keeps_connections else key | CLOSING

    def url(self, path: str) -> str:
        return self.address.url + path

    async def wait_until_healthy(self, timeout_seconds: float) -> None:
        """Raises EngineFailed when the process dies first, at once, or when the time is over."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            while not await self._healthy(client):
                if asyncio.get_running_loop().time() > deadline:
                    raise EngineFailed(
                        f"the model was not loaded within {timeout_seconds:g} seconds; a larger "
                        f"BITMILL_SERVING_LOAD_TIMEOUT_SECONDS gives it more time"
                    )
                await asyncio.wait({self.ended}, timeout=POLL_SECONDS)

    async def _healthy(self, client: httpx.AsyncClient) -> bool:
        if not self.alive:
            raise EngineFailed(f"the model could not be loaded: its engine {self.how_it_ended()}")
        return await self.answers(client)

    async def answers(self, client: httpx.AsyncClient) -> bool:
        try:
            answer = await client.get(self.url(self.command.health_path), headers=CLOSING)
        except httpx.RequestError:
            return False  # it does not listen yet, hangs, or has just died, which the next look finds out
        return answer.status_code == httpx.codes.OK

    async def kill(self) -> None:
        """Ends the process and whatever it started, and waits until the memory is free."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("engine %d had ended already", self.pid)
        await asyncio.wait({self.ended})
        self.scratch.cleanup()

    def how_it_ended(self) -> str:
        code = self.process.returncode
        if code == -signal.SIGKILL:
            return "was killed by SIGKILL, which the kernel sends when memory runs out"
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"exited with code {code}; the serving host's log has its last lines"

    def log_tail(self) -> str:
        with self.log.open(errors="replace") as file:
            return "".join(deque(file, maxlen=LOG_TAIL_LINES))

    def pids(self) -> set[int]:
        """The process and its descendants, but for the one that watches over them."""
        try:
            descendants = psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:
            return set()
        return {self.pid, *(child.pid for child in descendants if not _watches(child))}

    def resident_bytes(self) -> int | None:
        """The memory of the process and its descendants; None when it is gone."""
        try:
            return sum(psutil.Process(pid).memory_info().rss for pid in self.pids()) or None
        except psutil.Error:
            return None


def _watches(child: psutil.Process) -> bool:
    try:
        return LAUNCHER in child.cmdline()
    except psutil.Error:
        return False


async def tell(running: Running, told: Told) -> None:
    """Raises EngineFailed where the engine does not do it."""
    what = f"{told.method} {told.path}"
    try:
        async with httpx.AsyncClient(timeout=TOLD_SECONDS, trust_env=False) as client:
            url, headers = running.url(told.path), running.headers
            answer = await client.request(told.method, url, json=told.body, headers=headers)
    except httpx.TransportError as error:
        raise EngineFailed(f"the engine did not take {what}: {error!r}") from error
    if answer.is_error:
        raise EngineFailed(f"the engine refused {what}: {answer.text[:500]}")


def log_name(model: str) -> str:
    """A file name for a model's name, which may hold slashes and colons."""
    return f"engine-{re.sub(r'[^A-Za-z0-9._-]+', '-', model)[:150]}.log"
