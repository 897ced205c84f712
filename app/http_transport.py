"""How Bitmill's processes speak HTTP to each other and to engines: httpx's interface on aiohttp's parser.

Each token of a stream passes twice. httpx's own transport parses HTTP in Python, which took a tenth of a core at 200
tokens a second; this one takes a third of that. `exchange` leaves out what httpx's client does around it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import httpx
from aiohttp import ClientConnectorError, ClientSession, DummyCookieJar, TCPConnector
from httpx_aiohttp import AiohttpTransport

from app.connections import CLIENTS_KEEP_SECONDS


def fast_transport() -> httpx.AsyncBaseTransport:
    """Any number of connections, kept open for the next request unless this one says `connection: close`.

    Made and used inside one event loop.
    """

    def session() -> ClientSession:
        connector = TCPConnector(limit=0, keepalive_timeout=CLIENTS_KEEP_SECONDS)
        return ClientSession(connector=connector, cookie_jar=DummyCookieJar())

    return _Transport(client=session)


async def exchange(
    transport: httpx.AsyncBaseTransport,
    method: str,
    url: str,
    *,
    headers: dict[str, str],
    content: bytes | None,
    timeout: httpx.Timeout,
) -> httpx.Response:
    """The answer as it begins; the caller closes it. No cookies, redirects or proxies. Raises httpx.TransportError."""
    extensions = {"timeout": timeout.as_dict()}
    request = httpx.Request(method, _parsed(url), headers=headers, content=content, extensions=extensions)
    return await transport.handle_async_request(request)


# A few hundred addresses of engines and the serving host, each a path or two: parsing takes longer than the rest.
_parsed: Final = lru_cache(maxsize=1024)(httpx.URL)


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
