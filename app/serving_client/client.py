"""HTTP to the serving host, which loads models and runs their engines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote

import httpx

from app.domain.errors import ServingUnavailable
from app.http_transport import exchange, fast_transport


@dataclass(frozen=True, slots=True)
class ForwardedAnswer:
    """An answer whose body is still on its way. Whoever holds it calls `aclose`, once."""

    status: int
    headers: dict[str, str]
    chunks: AsyncIterator[bytes]
    aclose: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class CompleteAnswer:
    status: int
    body: bytes
    headers: dict[str, str]


_PATIENT = httpx.Timeout(None, connect=5.0)
_FORWARDED = {"content-type": "application/json", "accept-encoding": "identity"}


def _passed_on(answer: httpx.Response) -> dict[str, str]:
    """What a client should see of the host's headers."""
    found = {"content-type": answer.headers.get("content-type", "application/json")}
    return found | {name: answer.headers[name] for name in ("retry-after",) if name in answer.headers}


class ServingClient:
    def __init__(
        self,
        base_url: str,
        timeout: float | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`timeout` (seconds) bounds each wait for bytes; without one, generation may take its time."""
        self.base_url = base_url.rstrip("/")
        self._timeout = httpx.Timeout(timeout, connect=5.0)
        self._transport = transport or fast_transport()
        self._http = httpx.AsyncClient(
            base_url=self.base_url, timeout=self._timeout, trust_env=False, transport=self._transport
        )

    async def forward(self, path: str, body: bytes) -> ForwardedAnswer:
        """Sends a request on and returns as soon as its answer begins. Raises ServingUnavailable."""
        url = self.base_url + path
        answer = await self._received(
            exchange(self._transport, "POST", url, headers=_FORWARDED, content=body, timeout=self._timeout)
        )
        return ForwardedAnswer(
            status=answer.status_code,
            headers=_passed_on(answer),
            chunks=self._chunks(answer),
            aclose=answer.aclose,
        )

    async def ask(self, method: str, path: str, body: bytes | None = None) -> CompleteAnswer:
        """The host's whole answer, refusals too. Raises ServingUnavailable where there is none."""
        headers = {"content-type": "application/json"} if body is not None else None
        # Loading a model may take longer than any bound on a wait for bytes.
        request = self._http.build_request(method, path, content=body, headers=headers, timeout=_PATIENT)
        answer = await self._received(self._http.send(request))
        return CompleteAnswer(answer.status_code, answer.content, _passed_on(answer))

    async def unload(self, name: str) -> bool:
        """Frees the model's memory; False where it was not loaded. Raises ServingUnavailable."""
        path = f"/v1/deployments/{quote(name, safe='')}"
        answer = await self._received(self._http.delete(path))
        if answer.status_code == httpx.codes.NOT_FOUND:
            return False
        self._checked(answer)
        return True

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _received(self, sent: Awaitable[httpx.Response]) -> httpx.Response:
        try:
            answer = await sent
        except httpx.ConnectError as error:
            raise ServingUnavailable(
                f"no serving host answers at {self.base_url}; start one with `bitmill up` (or `uvicorn "
                f"workers.serving.host:create_host --factory`), or set BITMILL_SERVING_URL"
            ) from error
        except httpx.TransportError as error:
            raise self._broken(error) from error
        if answer.is_server_error and answer.headers.get("content-type") != "application/json":
            # Not in the host's own words: it was told to stop with the request in flight.
            await answer.aclose()
            raise self._failed(answer)
        return answer

    async def _chunks(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for chunk in answer.aiter_raw():
                yield chunk
        except httpx.TransportError as error:
            broken = self._broken(error)
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                raise broken from error
            # The status is sent already: the stream itself has to say that it is not complete.
            yield b"data: " + json.dumps({"error": broken.to_dict()}).encode() + b"\n\n"

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        raise self._failed(answer)

    def _failed(self, answer: httpx.Response) -> ServingUnavailable:
        return ServingUnavailable(f"the serving host at {self.base_url} answered {answer.status_code}; see its log")

    def _broken(self, error: httpx.TransportError) -> ServingUnavailable:
        return ServingUnavailable(
            f"the serving host at {self.base_url} broke off ({type(error).__name__}); send the request again"
        )
