"""Answers that pass through a process while the client may hang up at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

CLIENT_CLOSED_REQUEST: Final = 499  # nobody is left to read it; it shows in the access log


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client hangs up (then ClientGone is raised).

    The request's body must have been read: what the connection delivers next is the end of it.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnection(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            await _cancel(working)
            # What was finished all the same is not dropped: whoever gets it returns what it holds.
            if working.cancelled() or working.exception() is not None:
                raise ClientGone
        return working.result()
    finally:
        await _cancel(working)
        await _cancel(watching)


async def _disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})


class RelayResponse(Response):
    """Sends chunks as they come. `close` runs once, whether the answer ended, broke or lost its client.

    `until`, a moment of the event loop's clock, ends it even where the client stays and reads nothing.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        *,
        status_code: int,
        headers: Mapping[str, str],
        until: float | None = None,
    ) -> None:
        super().__init__(status_code=status_code)
        self.until = until
        self.chunks = chunks
        self.close = close
        self.raw_headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # A time-out leaves the answer incomplete, so that the server closes the connection.
            with suppress(ClientGone, TimeoutError):
                async with asyncio.timeout_at(self.until):
                    await unless_disconnected(receive, self._send(send))
        finally:
            await self.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
