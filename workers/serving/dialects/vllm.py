"""vLLM's server.

Seen with 0.32: forced calls come as text in some forms, and not by their schema in
others; the log-probabilities of completions list the best where none were asked for, and of tokens with the same text
the last; a prompt that is only scored is counted with a token of output; refusals carry class names, and a context
that is too short has no code of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary

import httpx

from app.domain.errors import ContextLengthExceeded, InvalidParameter
from workers.serving.contract.call import Call
from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.completions import CompletionRequest, EmbeddingsRequest
from workers.serving.contract.fields import GenerationFields, Strict
from workers.serving.contract.schemas import Grammar
from workers.serving.dialects.base import Dialect, Upstream
from workers.serving.dialects.choices import Edit, Part, ask_parts, unchanged
from workers.serving.dialects.embeddings import ask_embeddings
from workers.serving.dialects.json_messages import JsonMessage, answer_grammar, require_alone
from workers.serving.dialects.openai import single_choices
from workers.serving.dialects.templates import TemplateFacts, check_template, has_calls

TOKENIZE: Final = "/tokenize"
# What of a conversation decides how many tokens its prompt has.
OF_PROMPTS: Final = frozenset({"chat_template_kwargs", "messages", "tools"})
# Given by us, or of no effect on a single choice.
OF_GRAMMARS: Final = frozenset({"n", "parallel_tool_calls", "response_format", "tool_choice"})
HELLO: Final = {"role": "user", "content": "hello"}
TOOL: Final = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object", "properties": {}}}}


class VllmDialect(Dialect):
    def __init__(self) -> None:
        self._facts: WeakKeyDictionary[object, TemplateFacts] = WeakKeyDictionary()

    async def ask(self, upstream: Upstream, call: Call) -> httpx.Response:
        if isinstance(call.request, ChatCompletionRequest):
            await self._check(upstream, call.request)
        answer = await self._ask(upstream, call)
        if answer.status_code == httpx.codes.NOT_FOUND and b'"error"' not in await answer.aread():
            await answer.aclose()
            kind = "writes no text" if isinstance(call.request, GenerationFields) else "writes text"
            raise InvalidParameter(f"the model {call.body['model']!r} {kind}; use another route for it", param="model")
        if answer.status_code != httpx.codes.BAD_REQUEST:
            return answer
        await answer.aread()  # and thereby closed, whatever becomes of it
        shorter = await _shortened(upstream, call)
        return answer if shorter is None else await self._ask(upstream, shorter)

    async def _ask(self, upstream: Upstream, call: Call) -> httpx.Response:
        request = call.request
        if not isinstance(request, GenerationFields):
            return await ask_embeddings(upstream, call)
        grammar = None
        if isinstance(request, ChatCompletionRequest) and _is_json(request):
            grammar = await asyncio.to_thread(answer_grammar, request)
        parts = list(_parts(call, grammar))
        if len(parts) == 1 and _passes_unchanged(request):
            return await upstream.post(call.path, call.body)
        return await ask_parts(upstream, call, parts)

    async def _check(self, upstream: Upstream, request: ChatCompletionRequest) -> None:
        require_alone("structured_outputs", request.structured_outputs, request)
        if not (request.callable_tools or has_calls(request)):
            return
        if upstream.key not in self._facts:
            self._facts[upstream.key] = await _template_facts(upstream)
        check_template(request, self._facts[upstream.key], engine="vllm")


async def _template_facts(upstream: Upstream) -> TemplateFacts:
    """By the prompts' lengths: a template that has a place for something writes more where there is more of it."""
    plain = await _count(upstream, {"messages": [HELLO]})
    with_tools = await _count(upstream, {"messages": [HELLO], "tools": [TOOL]})
    short, long = [await _count(upstream, {"messages": _history(argument)}) for argument in ("a", "a b c d e f g h")]
    return TemplateFacts(takes_tools=with_tools > plain > 0, takes_calls=long > short > 0)


def _history(argument: str) -> list[dict[str, Any]]:
    function = {"name": "probe", "arguments": json.dumps({"text": argument})}
    call = {"id": "call_1", "type": "function", "function": function}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "done"}
    return [HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}, result]


async def _count(upstream: Upstream, question: dict[str, Any]) -> int:
    """How many tokens the prompt has; 0 where the template does not take it."""
    found = await _tokenized(upstream, question)
    return int(found["count"]) if found else 0


async def _tokenized(upstream: Upstream, question: dict[str, Any]) -> dict[str, Any] | None:
    answer = await upstream.query(TOKENIZE, question)
    try:
        content = await answer.aread()
    finally:
        await answer.aclose()
    if answer.status_code >= httpx.codes.BAD_REQUEST:
        return None
    found: dict[str, Any] = json.loads(content)
    return found


async def _shortened(upstream: Upstream, call: Call) -> Call | None:
    """A refused request with as much output as the context has room for; None where that was not the reason.

    Raises ContextLengthExceeded where the prompt alone is too long.
    """
    room = await _room(upstream, call)
    if room is None:
        return None
    limit = call.request.token_limit if isinstance(call.request, GenerationFields) else None
    if limit is None or limit <= room:
        return None
    body = {name: value for name, value in call.body.items() if name != "max_completion_tokens"}
    return Call(call.path, {**body, "max_tokens": room}, call.request)


async def _room(upstream: Upstream, call: Call) -> int | None:
    """How many tokens the longest prompt leaves; None where it cannot be told. Raises ContextLengthExceeded."""
    rooms = []
    for question, given in _questions(call):
        found = await _tokenized(upstream, question)
        if found is None:
            return None
        length, longest = given or int(found["count"]), int(found["max_model_len"])
        least = 1 if isinstance(call.request, GenerationFields) else 0
        if length + least > longest:
            raise ContextLengthExceeded(
                f"the prompt has {length} tokens, and the context of this model {longest}; shorten the prompt, or "
                f"deploy the model with a larger context_length",
                param="messages" if call.is_chat else "input" if least == 0 else "prompt",
            )
        rooms.append(longest - length)
    return min(rooms, default=None)


def _questions(call: Call) -> Iterator[tuple[dict[str, Any], int]]:
    """What to have counted, and the count where it is known: a prompt in token ids."""
    if isinstance(call.request, ChatCompletionRequest):
        yield {name: value for name, value in call.body.items() if name in OF_PROMPTS}, 0
        return
    assert isinstance(call.request, CompletionRequest | EmbeddingsRequest)  # noqa: S101 -- there is no fourth kind
    texts = call.request.prompts if isinstance(call.request, CompletionRequest) else call.request.inputs
    for text in texts:
        yield {"prompt": text if isinstance(text, str) else ""}, 0 if isinstance(text, str) else len(text)


def _is_json(request: ChatCompletionRequest) -> bool:
    return request.json_schema is not None or request.must_call


def _passes_unchanged(request: GenerationFields) -> bool:
    """Whether the server's own answer is right as it is, so that its bytes can be passed on."""
    if isinstance(request, ChatCompletionRequest):
        return not _is_json(request)
    assert isinstance(request, CompletionRequest)  # noqa: S101 -- there is no third kind
    return not (request.logprobs is not None or _only_scores(request))


def _only_scores(request: Strict) -> bool:
    return isinstance(request, CompletionRequest) and request.max_tokens == 0


def _parts(call: Call, grammar: Grammar | None) -> Iterator[Part]:
    for body, number, choices in single_choices(call, beams=grammar is None):
        yield _part(call, body, number, grammar, choices)


def _part(call: Call, body: dict[str, Any], number: int, grammar: Grammar | None, choices: int) -> Part:
    request = call.request
    if isinstance(request, ChatCompletionRequest) and grammar is not None:
        body = {name: value for name, value in body.items() if name not in OF_GRAMMARS}
        body["structured_outputs"] = {"grammar": grammar.lark}
        if request.tools:
            body["tool_choice"] = "none"  # calls are read here, not there; the prompt has the tools all the same
        return Part(call.path, body, number, json_edit(request, grammar), OPENING)
    edit: Edit = unchanged
    if isinstance(request, CompletionRequest) and request.logprobs is not None:
        edit = best_edit(request.logprobs)
    return Part(call.path, body, number, edit, counts_output=not _only_scores(request), choices=choices)


OPENING: Final = {"delta": {"role": "assistant", "content": None}, "logprobs": None, "finish_reason": None}


def best_edit(top: int) -> Edit:
    """Of several tokens with the same text, such as parts of characters, the list of the best has the last alone."""

    def edit(choice: dict[str, Any]) -> None:
        found = choice.get("logprobs")
        if not found:
            return
        if not top:
            found["top_logprobs"] = None
            return
        for token, own, best in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
            if best is not None and own is not None:  # nothing predicted a prompt's first token
                best[token] = max(own, best.get(token, own))

    return edit


def json_edit(request: ChatCompletionRequest, grammar: Grammar) -> Edit:
    message = JsonMessage(request, grammar)

    def edit(choice: dict[str, Any]) -> None:
        said = choice.pop("delta" if request.stream else "message")
        message.put(said.get("content") or "", choice)

    return edit
