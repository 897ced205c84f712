"""How Bitmill's processes speak HTTP to each other and to engines: httpx's interface on aiohttp's parser.

Each token of a stream passes twice. httpx's own transport parses HTTP in Python, which took a tenth of a core at 200
tokens a second; this one takes a third of that.
"""

from __future__ import annotations

from typing import Final

import httpx
from aiohttp import ClientConnectorError, ClientSession, DummyCookieJar, TCPConnector
from httpx_aiohttp import AiohttpTransport

# Less than `bitmill serving` keeps a connection open: else a request could be sent as the other side closes it.
KEPT_SECONDS: Final = 15.0


def fast_transport(*, keep_connections: bool) -> httpx.AsyncBaseTransport:
    """Any number of connections, kept open between requests or not. Made and used inside one event loop."""

    def session() -> ClientSession:
        if keep_connections:
            connector = TCPConnector(limit=0, keepalive_timeout=KEPT_SECONDS)
        else:
            connector = TCPConnector(limit=0, force_close=True)
        return ClientSession(connector=connector, cookie_jar=DummyCookieJar())

    return _Transport(client=session)


class _Transport(AiohttpTransport):
    """Tells a server that is not there from one that broke off: the library calls both a time-out."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except httpx.ConnectTimeout as error:
            if isinstance(error.__cause__, ClientConnectorError):
                raise httpx.ConnectError(str(error), request=request) from error
            if not isinstance(error.__cause__, TimeoutError):
                raise httpx.RemoteProtocolError(str(error), request=request) from error
            raise
