"""Files of one repository of a Hugging Face hub, read over HTTP within a limit on bytes and on time.

What a repository says is its author's, who may be anybody: it never chooses the server that is asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final
from urllib.parse import quote

import httpx

from app.domain.errors import CorruptCheckpoint, HubUnreachable, SourceNotFound
from app.domain.model_names import ModelName
from app.settings import Settings

# Of all the files of one model together. The headers of the largest models known take 20 MB.
MAX_BYTES: Final = 64 * 1024**2
DEADLINE_SECONDS: Final = 60.0
# The hub sends weights' readers on to where they are stored.
MAX_REDIRECTS: Final = 5
REFUSED: Final = (401, 403)


class HubReader:
    """Asks the hub alone, and shows the token to nobody else: a redirect to another origin is followed without it.

    Every method raises HubUnreachable; also where the hub takes longer than the deadline, or sends more than the limit.
    """

    def __init__(self, model: ModelName, settings: Settings) -> None:
        self.model = model
        self._settings = settings
        revision = quote(model.revision or "main", safe="")
        self._base = f"{settings.hub_endpoint.rstrip('/')}/{model.repo}/resolve/{revision}"
        self._token = {"authorization": f"Bearer {settings.hub_token}"} if settings.hub_token else {}
        # Compressed, a short answer could become one of any length.
        self._client = httpx.Client(headers={"accept-encoding": "identity"})
        self._deadline = time.monotonic() + DEADLINE_SECONDS
        self._left_bytes = MAX_BYTES

    def __enter__(self) -> HubReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def find(self, file: str, limit_bytes: int) -> bytes | None:
        """A whole file; None where the repository has none. Raises CorruptCheckpoint beyond the limit."""
        found = self._get(file, limit_bytes + 1, {})
        if found is not None and len(found) > limit_bytes:
            raise CorruptCheckpoint(
                f"{file} of {self.model.name!r} on the hub is larger than {limit_bytes} bytes; it is no such file of "
                "a model",
                param="model",
            )
        return found

    def read(self, file: str, limit_bytes: int) -> bytes:
        """A whole file. Raises SourceNotFound, or CorruptCheckpoint beyond the limit."""
        return self._require(file, self.find(file, limit_bytes))

    def beginning(self, file: str, size_bytes: int) -> bytes:
        """The first bytes of a file, or all of it. Raises SourceNotFound.

        A server that knows no ranges begins to send the whole file: the rest is left where it is.
        """
        return self._require(file, self._get(file, size_bytes, {"range": f"bytes=0-{size_bytes - 1}"}))

    def _require(self, file: str, found: bytes | None) -> bytes:
        if found is None:
            raise self._not_found(file, httpx.codes.NOT_FOUND)
        return found

    def _get(self, file: str, size_bytes: int, headers: dict[str, str]) -> bytes | None:
        url = f"{self._base}/{quote(file, safe='')}"
        with self._translated(), self._answer(url, headers) as answer:
            if answer.status_code == httpx.codes.NOT_FOUND:
                return None
            if answer.status_code in REFUSED:
                raise self._not_found(file, answer.status_code)
            answer.raise_for_status()
            return self._take(answer, size_bytes)

    @contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The answer as it begins. httpx takes the token out of what goes on to another origin."""
        request = self._client.build_request("GET", url, headers=headers | self._token)
        for _ in range(MAX_REDIRECTS + 1):
            request.extensions["timeout"] = httpx.Timeout(self._seconds_left()).as_dict()
            answer = self._client.send(request, stream=True)
            try:
                if answer.next_request is None:
                    yield answer
                    return
                request = answer.next_request
            finally:
                answer.close()
        raise self._unreachable(f"more than {MAX_REDIRECTS} redirects")

    def _take(self, answer: httpx.Response, size_bytes: int) -> bytes:
        taken = bytearray()
        for chunk in answer.iter_raw():
            taken += chunk
            self._left_bytes -= len(chunk)
            if self._left_bytes < 0:
                raise self._unreachable(f"its files' headers take more than {MAX_BYTES} bytes")
            if len(taken) >= size_bytes:
                break
            self._seconds_left()
        return bytes(taken[:size_bytes])

    def _seconds_left(self) -> float:
        """How long the next wait may take."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._unreachable(f"it was not read within {DEADLINE_SECONDS:g} seconds")
        return min(left, self._settings.hub_timeout_seconds)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise self._unreachable(f"HTTP status {error.response.status_code}") from error
        except httpx.HTTPError as error:
            raise self._unreachable(type(error).__name__) from error

    def _not_found(self, file: str, status: int) -> SourceNotFound:
        return SourceNotFound(
            f"the hub has no {file} of {self.model.name!r} for us (HTTP {status}); check the name, and "
            f"BITMILL_HUB_TOKEN for a gated or private model",
            param="model",
        )

    def _unreachable(self, reason: str) -> HubUnreachable:
        return HubUnreachable(
            f"the hub at {self._settings.hub_endpoint} could not be asked for {self.model.name!r} ({reason}); "
            f"check BITMILL_HUB_ENDPOINT and the network",
            param="model",
        )
