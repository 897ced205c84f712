"""uvicorn's HTTP with a limit on what is no body: without one, a header may grow until the memory is full."""

from __future__ import annotations

import json
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.domain.errors import HeadersTooLarge
from app.domain.http_status import HTTP_STATUS

# Of a request's line and headers together.
MAX_HEAD_BYTES: Final = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """Answers with status 431 and closes the connection.

    What arrives is counted until a head is complete, and again whenever a body brings nothing: a chunked one may end in
    more headers.
    """

    waiting_bytes = 0
    is_too_large = False

    def data_received(self, data: bytes) -> None:
        self.waiting_bytes += len(data)
        super().data_received(data)
        if self.waiting_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.is_too_large = True
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        self.waiting_bytes = 0
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MAX_HEAD_BYTES:
            self.is_too_large = True
            raise ValueError("the head is too large")  # the parser ends, and asks for the answer below
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.waiting_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.waiting_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if not self.is_too_large:
            super().send_400_response(msg)
            return
        if self.cycle is None or self.cycle.response_complete:  # else an answer is on its way already
            self.transport.write(_refusal())
        self.transport.close()


def _refusal() -> bytes:
    error = HeadersTooLarge(f"the request's line and headers are larger than {MAX_HEAD_BYTES} bytes; send fewer")
    body = json.dumps({"error": error.to_dict()}).encode()
    lines = (
        f"HTTP/1.1 {HTTP_STATUS[HeadersTooLarge]} Request Header Fields Too Large",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + body
