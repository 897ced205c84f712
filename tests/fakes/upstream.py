"""An engine's server that answers as told: what it is asked, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx

from workers.serving.contract.call import parse_call
from workers.serving.dialects.base import Dialect, Upstream, objects
from workers.serving.dialects.llama_cpp_grammars import MARK

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
Reply = Callable[[dict[str, Any]], httpx.Response]


class Key:
    """Stands for a running engine."""


class Server:
    """`replies` maps each path to what makes its answer of a body. `asked` notes every body by its path."""

    def __init__(self, **replies: Reply) -> None:
        self.replies = {"/" + path.replace("__", "/").replace("_", "-"): reply for path, reply in replies.items()}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.opened: list[httpx.Response] = []
        self.looked_up: list[str] = []
        self.key = Key()

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        self.asked.append((path, body))
        answer = self.replies[path](body)
        self.opened.append(answer)
        return answer

    async def get(self, path: str) -> dict[str, Any]:
        self.looked_up.append(path)
        caps = {"supports_tools": True, "supports_tool_calls": True}
        return {"chat_template_caps": caps, "data": [{"meta": {"n_vocab": 10}}]}

    def ask(self, path: str, dialect: Dialect, **body: Any) -> tuple[int, Any]:
        """The status and the object, or all objects of a stream."""

        async def read() -> tuple[int, Any]:
            call = parse_call(path, {"model": "m", **body})
            answer = await dialect.ask(Upstream(self.key, self.post, self.post, self.get), call)
            if call.streams and answer.status_code < 400:
                found: Any = [value async for value in objects(answer.aiter_raw())]
            else:
                found = json.loads(await answer.aread())
            await answer.aclose()
            return answer.status_code, found

        result = asyncio.run(read())
        assert all(answer.is_closed for answer in self.opened)
        return result


def chat(body: dict[str, Any]) -> httpx.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": str(body.get("seed"))}, "finish_reason": "stop"}
    return httpx.Response(200, json={"id": "x", "choices": [choice], "usage": USAGE})


def text(body: dict[str, Any]) -> httpx.Response:
    choice = {"index": 0, "text": "some text", "logprobs": None, "finish_reason": "stop"}
    return httpx.Response(200, json={"id": "x", "choices": [choice], "usage": USAGE})


def obeying(reply: Reply, *, but: str = "nothing") -> Reply:
    """llama.cpp's server, which follows a grammar unless `but` is in it; such a one it ignores, with a 200."""

    def answer(body: dict[str, Any]) -> httpx.Response:
        grammar = body.get("grammar") or ""
        if MARK not in grammar:
            return reply(body)
        written = "so what" if but in grammar else MARK
        choice = {"index": 0, "text": written, "logprobs": None, "finish_reason": "length"}
        return httpx.Response(200, json={"id": "x", "choices": [choice], "usage": USAGE})

    return answer


def failure(status: int, message: str) -> Reply:
    return lambda body: httpx.Response(status, json={"error": {"code": status, "message": message}})
