"""HTTP by hand against a server like the real one: requests that no client library would send."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http_protocol import BoundedProtocol

PIECE_BYTES = 64 * 1024
TIMEOUT_SECONDS = 20.0

Answer = tuple[int, dict[str, Any]]


class Connection:
    """One connection; `ask` may be called again while the server keeps it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, *, sent: int = 0, body: bytes | None = None
    ) -> Answer:
        """Sends the head, then `body` or `sent` bytes of no meaning, as far as the server takes them."""
        given = {"host": "bitmill", "content-type": "application/json", **(headers or {})}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        pieces = [body] if body else _pieces(sent, chunked=given.get("transfer-encoding") == "chunked")
        sender = threading.Thread(target=self._send, args=(pieces,))
        sender.start()
        try:
            return self.answer()
        finally:
            if sent and method == "POST":
                self._finish(sender)

    def _finish(self, sender: threading.Thread) -> None:
        sender.join(timeout=TIMEOUT_SECONDS)
        assert not sender.is_alive()

    def _send(self, pieces: Any) -> None:
        try:
            for piece in pieces:
                self.socket.sendall(piece)
        except OSError:
            return  # the server closed the connection: its answer is what counts

    def answer(self) -> Answer:
        status = int(self.file.readline().split()[1])
        length = 0
        while line := self.file.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        text = self.file.read(length)
        found = json.loads(text) if text.startswith(b"{") else {}
        return status, found.get("error", found)


def _pieces(size: int, *, chunked: bool) -> Iterator[bytes]:
    for start in range(0, size, PIECE_BYTES):
        data = b"x" * min(PIECE_BYTES, size - start)
        yield b"%x\r\n%s\r\n" % (len(data), data) if chunked else data
    if chunked:
        yield b"0\r\n\r\n"


class Raw:
    """The server: asked by a connection for each request. It counts what the application was given of bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.port = 0
        self.received_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def count() -> Message:
            message = await receive()
            self.received_bytes += len(message.get("body", b""))
            return message

        await self.app(scope, count, send)

    def connect(self) -> Connection:
        return Connection(self.port)

    def ask(self, *arguments: Any, **options: Any) -> Answer:
        with self.connect() as connection:
            return connection.ask(*arguments, **options)

    def send(self, data: bytes) -> Answer:
        """Sends these bytes, as far as the server takes them, and reads an answer."""
        with self.connect() as connection:
            sender = threading.Thread(target=connection._send, args=([data],))
            sender.start()
            try:
                return connection.answer()
            finally:
                sender.join(timeout=TIMEOUT_SECONDS)

    def send_until_closed(self, start: bytes, piece: bytes, *, limit_bytes: int) -> int:
        """How many bytes the server took before it closed the connection."""
        with self.connect() as connection:
            connection.socket.sendall(start)
            sent = 0
            try:
                while sent < limit_bytes:
                    connection.socket.sendall(piece)
                    sent += len(piece)
            except OSError:
                return sent
        return sent

    def text(self, path: str) -> str:
        with self.connect() as connection:
            connection.socket.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            return connection.file.read().decode()


@contextmanager
def serving(app: ASGIApp) -> Iterator[Raw]:
    raw = Raw(app)
    config = uvicorn.Config(raw, host="127.0.0.1", port=0, log_level="error", http=BoundedProtocol)
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    raw.port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield raw
    finally:
        server.should_exit = True
        thread.join(timeout=TIMEOUT_SECONDS)
        listener.close()
