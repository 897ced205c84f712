"""The connection to a model on a remote server, in the place of a process that the host would have started."""

from __future__ import annotations

import asyncio

import httpx

from app.domain.errors import EngineFailed
from workers.serving.engines.base import CLOSING, RemoteAddress


class RemoteConnection:
    """Has no process, and so no memory here; it ends when it is unloaded."""

    pid = None

    def __init__(self, remote: RemoteAddress) -> None:
        self.remote = remote
        self.upstream_model = remote.model
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    @property
    def headers(self) -> dict[str, str]:
        key = {"authorization": f"Bearer {self.remote.api_key}"} if self.remote.api_key else {}
        return key | CLOSING

    def url(self, path: str) -> str:
        return self.remote.url.rstrip("/") + path.removeprefix("/v1")

    async def wait_until_healthy(self, timeout_seconds: float) -> None:
        """Looks the model up on the server. Raises EngineFailed."""
        try:
            async with httpx.AsyncClient(timeout=min(timeout_seconds, 30.0), trust_env=False) as client:
                answer = await client.get(self.url("/v1/models"), headers=self.headers)
                answer.raise_for_status()
                names = [str(model["id"]) for model in answer.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EngineFailed(f"the remote server at {self.remote.url} does not list its models: {error}") from error
        if self.remote.model not in names:
            raise EngineFailed(
                f"the remote server at {self.remote.url} has no model {self.remote.model!r}; it has "
                f"{', '.join(names[:10]) or 'none'}"
            )

    async def answers(self, client: httpx.AsyncClient) -> bool:
        """Whatever it says of the question: a server that refuses it is there."""
        try:
            answer = await client.get(self.url("/v1/models"), headers=self.headers)
        except httpx.RequestError:
            return False
        return not answer.is_server_error

    async def kill(self) -> None:
        if self.alive:
            self.ended.set_result(0)

    def how_it_ended(self) -> str:
        return "was disconnected"

    def log_tail(self) -> str:
        return ""

    def pids(self) -> set[int]:
        return set()

    def resident_bytes(self) -> int | None:
        return None
