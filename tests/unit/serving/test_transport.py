"""Connections that are kept or not, and their failures, told apart as httpx's own transport tells them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from app.cli.launch import free_port
from app.http_transport import exchange, fast_transport
from tests.unit.serving.conftest import served
from workers.serving.engines.base import CLOSING

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


def ask(serve: Callable[[Reader, Writer], Coroutine[Any, Any, None]] | None) -> None:
    """One request to a server that does as it is told; None: there is no server."""

    async def main() -> None:
        port = free_port()
        server = await asyncio.start_server(serve, "127.0.0.1", port) if serve else None
        transport = fast_transport()
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


@pytest.mark.parametrize(("headers", "connections"), [({}, 1), (CLOSING, 3)])
def test_a_connection_is_kept_unless_the_request_says_otherwise(headers: dict[str, str], connections: int) -> None:
    app = FastAPI()
    ports: set[int] = set()

    @app.post("/x")
    async def answer(request: Request) -> int:
        assert request.client is not None
        ports.add(request.client.port)
        return request.client.port

    async def ask_thrice(url: str) -> None:
        async with fast_transport() as transport:
            for _ in range(3):
                found = await exchange(
                    transport, "POST", f"{url}/x", headers=headers, content=b"{}", timeout=httpx.Timeout(5)
                )
                assert int(await found.aread()) in ports

    with served(app) as url:
        asyncio.run(ask_thrice(url))
    assert len(ports) == connections
