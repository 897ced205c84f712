"""A limit on requests' bodies, kept before and while they are read: what is refused takes no memory."""

from __future__ import annotations

from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.errors import BitmillError, BodyTooLarge
from app.domain.http_status import status_of

LENGTH: Final = b"content-length"


async def refuse(error: BitmillError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers in a route's place. What the client goes on to send is thrown away by the server as it comes."""
    answer = JSONResponse({"error": error.to_dict()}, status_code=status_of(error), headers=error.headers)
    await answer(scope, receive, send)


class BodyLimit:
    """Refuses what is stated to be longer at once, and what states no length as soon as it is.

    Routes whose paths are in `without` have limits of their own.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, without: frozenset[str] = frozenset()) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.without = without

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.without:
            await self.app(scope, receive, send)
            return
        stated = next((value for name, value in scope["headers"] if name == LENGTH), None)
        if stated is None:
            await self._counted(scope, receive, send)
        elif int(stated) > self.max_bytes:
            await refuse(self._too_large(), scope, receive, send)
        else:  # the server delivers as much as is stated, and no more
            await self.app(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        left, started = self.max_bytes, False

        async def count() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            return message

        async def send_unless_refused(message: Message) -> None:
            nonlocal started
            # Frameworks turn what is raised while they read into answers of their own.
            if left >= 0 or started:
                started = True
                await send(message)

        try:
            await self.app(scope, count, send_unless_refused)
        except BodyTooLarge:
            if started:
                raise
        if left < 0 and not started:
            await refuse(self._too_large(), scope, receive, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body is larger than {self.max_bytes} bytes; send less, or raise BITMILL_MAX_BODY_BYTES. Files are "
            "uploaded with POST /v1/files"
        )
