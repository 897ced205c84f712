"""A child process that is spoken to in lines of JSON over a socket of its own.

Its standard output and error go to a log, so that a library that prints disturbs nothing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final

Message = dict[str, Any]

CHUNK_BYTES = 65536
# The kind of the message that only says that the process runs, and how often it is sent.
BEAT: Final = "beat"
BEAT_SECONDS: Final = 2.0

# Threads that wait for each other by spinning lose nearly all their time where another process wants the cores: a
# training step took ten times as long.
QUIET: Final = {"OMP_WAIT_POLICY": "passive"}


class ChildCrashed(Exception):
    """The process ended without a result or an error of its own."""


class Child:
    """`with Child(...)` starts the process; leaving the block kills its whole group.

    Its temporary files lie in a folder of its own, which goes with it: killed, it takes none of them away itself.
    """

    def __init__(self, module: str, task: Message, *, log: Path) -> None:
        self.module = module
        self.task = task
        self.log = log
        self._buffer = b""

    def __enter__(self) -> Child:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = TemporaryDirectory(prefix="bitmill-job-", ignore_cleanup_errors=True)
        self._socket, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, str(descriptor), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(descriptor,),
                start_new_session=True, env=QUIET | os.environ | {"TMPDIR": self._scratch.name},
            )  # fmt: skip
        theirs.close()
        self.send(self.task)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kill_group(self.process)
        self._socket.close()
        self._scratch.cleanup()

    def send(self, message: Message) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChildCrashed(self._how_it_ended()) from error

    def receive(self, *, timeout_seconds: float) -> Message | None:
        """The next message, or None if none came in time. Raises ChildCrashed."""
        deadline = time.monotonic() + timeout_seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                return None
            self._buffer += self._read()
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: Message = json.loads(line)
        return message

    def _read(self) -> bytes:
        try:
            chunk = self._socket.recv(CHUNK_BYTES)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            raise ChildCrashed(self._how_it_ended())
        return chunk

    def _how_it_ended(self) -> str:
        code = self.process.wait(timeout=10)
        if code == -signal.SIGKILL:
            return "its process was killed by SIGKILL, which the kernel sends when memory runs out"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process exited with code {code} and no result; see its log {self.log.name}"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process started with its own session, with all that it started, and waits for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended and was waited for already
    process.wait()


class Channel:
    """The child's side of the conversation. Any thread may send."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._file = self._socket.makefile("r", encoding="utf-8")
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        with self._sending:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def beat(self) -> None:
        """Lets a thread of its own say, from now on, that this process runs."""
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def _beat(self) -> None:
        try:
            while True:
                self.send({"kind": BEAT})
                time.sleep(BEAT_SECONDS)
        except OSError:
            return  # the supervisor closed the channel: the process is about to be killed

    def receive(self) -> Message:
        """Waits for a message. Raises EOFError when the other side is gone."""
        line = self._file.readline()
        if not line:
            raise EOFError("the supervisor closed the channel")
        message: Message = json.loads(line)
        return message
