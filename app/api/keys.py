"""The API's keys: asked for before anything of a request but its head is read."""

from __future__ import annotations

import secrets
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from app.body_limit import refuse
from app.domain.errors import AuthenticationFailed

# What anybody may ask: health, metrics and the description of the API.
OPEN: Final = frozenset({"/livez", "/readyz", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
AUTHORIZATION: Final = b"authorization"


class RequireKey:
    """Demands one of the keys of every path that is not open. Compares in constant time."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys and scope["path"] not in OPEN and not self._has_key(scope):
            error = AuthenticationFailed("the API key is missing or wrong; send `Authorization: Bearer <key>`")
            await refuse(error, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        stated = next((value for name, value in scope["headers"] if name == AUTHORIZATION), b"")
        scheme, _, given = stated.partition(b" ")
        return scheme.lower() == b"bearer" and any(secrets.compare_digest(given, key) for key in self.keys)
