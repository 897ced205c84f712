"""Failures of a connection, told apart as httpx's own transport tells them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from app.cli.launch import free_port
from app.http_transport import fast_transport

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


def ask(serve: Callable[[Reader, Writer], Coroutine[Any, Any, None]] | None) -> None:
    """One request to a server that does as it is told; None: there is no server."""

    async def main() -> None:
        port = free_port()
        server = await asyncio.start_server(serve, "127.0.0.1", port) if serve else None
        transport = fast_transport(keep_connections=False)
        try:
            async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(2, read=0.5)) as client:
                await client.post(f"http://127.0.0.1:{port}/x", content=b"{}")
        finally:
            if server:
                server.close()

    asyncio.run(main())


async def hang_up(reader: Reader, writer: Writer) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def break_off(reader: Reader, writer: Writer) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
    await writer.drain()
    writer.close()


async def say_nothing(reader: Reader, writer: Writer) -> None:
    await reader.read()
    writer.close()


@pytest.mark.parametrize(
    ("serve", "error"),
    [
        (None, httpx.ConnectError),
        (hang_up, httpx.RemoteProtocolError),
        (break_off, httpx.ReadError),
        (say_nothing, httpx.ReadTimeout),
    ],
)
def test_failures_are_told_apart(serve: Any, error: type[httpx.TransportError]) -> None:
    with pytest.raises(error) as raised:
        ask(serve)
    assert type(raised.value) is error
