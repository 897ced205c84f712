"""Whether a running llama.cpp follows a grammar. It does not say so of one that it cannot: it writes without.

It carries a version of llguidance of its own, and refuses schemas that ours takes, such as those with the format `uri`
(xllamacpp 2026.10). So it is asked once for each grammar: for an answer that begins with a mark, which nobody writes
who is not made to.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary

import httpx

from app.domain.errors import InvalidParameter
from workers.serving.contract.chat import ChatCompletionRequest, SchemaFormat
from workers.serving.contract.keywords import keywords, without
from workers.serving.contract.schemas import Grammar
from workers.serving.dialects.base import Upstream
from workers.serving.dialects.json_messages import answer_grammar

MARK: Final = "q7Z"
# Of a grammar for llguidance; it says itself where one of its other kind cannot be followed.
HEADER: Final = "%llguidance"
START: Final = re.compile(r"^start\s*:", re.MULTILINE)
KEPT: Final = 256
# What says where things are, and cannot be left out by itself.
STRUCTURE: Final = frozenset({"$defs", "$id", "$ref", "$schema", "definitions", "description", "properties", "title"})
# What other keywords only mean anything beside, and so is suspected last.
COMMON: Final = frozenset({"additionalProperties", "allOf", "anyOf", "const", "enum", "items", "required", "type"})


class Refused(Exception):
    """The server refused a question of our own, and the client gets its answer."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(answer.text)
        self.answer = answer


async def answered(upstream: Upstream, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Raises Refused."""
    answer = await upstream.query(path, body)
    try:
        content = await answer.aread()
    finally:
        await answer.aclose()
    if answer.status_code >= 400:
        raise Refused(answer)
    found: dict[str, Any] = json.loads(content)
    return found


def in_its_form(lark: str) -> str:
    return lark if lark.startswith(HEADER) else f"{HEADER} {{}}\n{lark}"


class EngineGrammars:
    """What is known of each running engine, for the latest grammars."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[object, OrderedDict[str, bool]] = WeakKeyDictionary()

    async def require(self, upstream: Upstream, request: ChatCompletionRequest, grammar: Grammar) -> None:
        """Raises InvalidParameter, with the keyword, where the engine does not follow the request's grammar."""
        if await self._follows(upstream, grammar):
            return
        for keyword, value, simpler in _simpler(request):
            if await self._follows(upstream, await asyncio.to_thread(answer_grammar, simpler)):
                raise InvalidParameter(
                    f"`{grammar.param}` cannot be followed: the engine 'llama_cpp' does not know what {keyword!r} asks "
                    f"for here ({value!r:.100}); leave it out, or serve the model from safetensors",
                    param=grammar.param,
                )
        raise InvalidParameter(
            f"`{grammar.param}` cannot be followed: the engine 'llama_cpp' refuses the schema; simplify it, or serve "
            f"the model from safetensors",
            param=grammar.param,
        )

    async def require_own(self, upstream: Upstream, grammar: str) -> None:
        """The same for a grammar that the request has brought."""
        if not grammar.startswith(HEADER):
            return
        if not await self._follows(upstream, await asyncio.to_thread(Grammar, grammar, param="grammar")):
            raise InvalidParameter(
                "`grammar` cannot be followed: the engine 'llama_cpp' has an older llguidance, which refuses it",
                param="grammar",
            )

    async def _follows(self, upstream: Upstream, grammar: Grammar) -> bool:
        known = self._known.setdefault(upstream.key, OrderedDict())
        if grammar.lark not in known:
            known[grammar.lark] = await _writes_mark(upstream, grammar.lark)
        known.move_to_end(grammar.lark)
        while len(known) > KEPT:
            known.popitem(last=False)
        return known[grammar.lark]


async def _writes_mark(upstream: Upstream, lark: str) -> bool:
    marked = START.sub(f'start: "{MARK}" marked\nmarked:', lark, count=1)
    body = {
        "model": "",
        "prompt": "x",
        "grammar": in_its_form(marked),
        "max_tokens": len(MARK),  # each is a character at least
        "temperature": 0,
        "cache_prompt": False,
    }
    (choice,) = (await answered(upstream, "/v1/completions", body))["choices"]
    return bool(choice["text"].startswith(MARK))


def _simpler(request: ChatCompletionRequest) -> Iterator[tuple[str, Any, ChatCompletionRequest]]:
    """Each keyword of the request's schemas, one of its values, and the request without that keyword."""
    found: dict[str, Any] = {}
    for schema in _schemas(request):
        found = keywords(schema) | found
    for keyword in sorted(found.keys() - STRUCTURE, key=lambda name: (name in COMMON, name)):
        yield keyword, found[keyword], _less(request, keyword)


def _schemas(request: ChatCompletionRequest) -> list[dict[str, Any]]:
    if request.must_call:
        return [tool.function.parameters or {} for tool in request.callable_tools]
    return [request.json_schema or {}]


def _less(request: ChatCompletionRequest, keyword: str) -> ChatCompletionRequest:
    copy = request.model_copy(deep=True)
    for tool in copy.tools or ():
        tool.function.parameters = without(tool.function.parameters, keyword)
    if isinstance(copy.response_format, SchemaFormat):
        copy.response_format.json_schema.schema_ = without(copy.response_format.json_schema.schema_, keyword)
    return copy
