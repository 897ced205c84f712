"""llama.cpp's server, which ignores fields that it does not know and counts one of several choices.

Seen with xllamacpp 2026.10: `echo`, `best_of` and wrong values are ignored; usage is that of one choice; a stream of
completions may begin with null and has its usage in the last piece; `top_logprobs` = 0 gives none; /v1/completions
answers log-probabilities in the shape of chat completions; templates without tools ignore them; answers that must
call a tool may talk first; streams of JSON break where a character comes in parts; grammars that cannot be followed
are not followed; and a prompt whose beginning is cached gives other rounding errors, and so other text for the same
seed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import httpx

from app.domain.errors import ContextLengthExceeded, InvalidParameter
from workers.serving.contract.call import Call, check_logit_bias
from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.completions import CompletionRequest
from workers.serving.contract.fields import GenerationFields
from workers.serving.contract.schemas import Grammar
from workers.serving.dialects.base import Dialect, Upstream
from workers.serving.dialects.choices import Part, ask_parts, ask_whole
from workers.serving.dialects.embeddings import ask_embeddings
from workers.serving.dialects.json_messages import answer_grammar, require_alone
from workers.serving.dialects.llama_cpp_edits import JsonEdit, TextEdit, chat_edit
from workers.serving.dialects.llama_cpp_grammars import EngineGrammars, Refused, answered, in_its_form
from workers.serving.dialects.templates import TemplateFacts, check_template, has_calls

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
# What it says, as an error of its own, of a text for an embedding.
TOO_LONG: Final = b"too large to process"
# What it says where it cannot tell calls from content, for example because a character is cut off.
UNREADABLE: Final = b"does not match the expected"
# What it says of tools that may be called, whose schemas it reads by rules of its own.
SCHEMA_ERROR: Final = re.compile(rb'JSON schema error[^"]*')
# Its seeds have 32 bits, of which the last stands for "a random one".
SEEDS: Final = 2**32 - 1
DROPPED: Final = frozenset({"best_of", "echo", "max_completion_tokens", "n", "stream_options"})
OF_CHAT: Final = frozenset(
    {
        "chat_template_kwargs",
        "messages",
        "parallel_tool_calls",
        "response_format",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a running server says of its model."""

    template: TemplateFacts
    vocabulary_size: int


class LlamaCppDialect(Dialect):
    def __init__(self) -> None:
        self._facts: WeakKeyDictionary[object, Facts] = WeakKeyDictionary()
        self._grammars = EngineGrammars()

    async def ask(self, upstream: Upstream, call: Call) -> httpx.Response:
        answer = await self._ask(upstream, call)
        if answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR and TOO_LONG in await answer.aread():
            await answer.aclose()
            raise ContextLengthExceeded(
                "a text in `input` is longer than this model reads in one go; split it, or raise "
                "BITMILL_SERVING_CONTEXT_LENGTH if the model allows it",
                param="input",
            )
        if answer.status_code == httpx.codes.NOT_IMPLEMENTED:
            await answer.aclose()
            embeds = "writes text; embeddings need a model that was made for them"
            writes = "is one for embeddings and writes no text; use /v1/embeddings"
            kind = writes if isinstance(call.request, GenerationFields) else embeds
            raise InvalidParameter(f"the model {call.body['model']!r} {kind}", param="model")
        if answer.status_code == httpx.codes.BAD_REQUEST and (found := SCHEMA_ERROR.search(await answer.aread())):
            await answer.aclose()
            raise InvalidParameter(f"`tools` cannot be used on 'llama_cpp': {found[0].decode()}", param="tools")
        return answer

    async def _ask(self, upstream: Upstream, call: Call) -> httpx.Response:
        request = call.request
        if not isinstance(request, GenerationFields):
            return await ask_embeddings(upstream, call)
        await self._check(upstream, request)
        try:
            parts = [part async for part in self._parts(upstream, call)]
        except Refused as refused:
            return refused.answer
        if _passes_unchanged(call):
            return await self._unchanged(upstream, call, parts[0])
        return await ask_parts(upstream, call, parts)

    async def _parts(self, upstream: Upstream, call: Call) -> AsyncIterator[Part]:
        request = call.request
        if isinstance(request, CompletionRequest):
            async for part in _text_parts(upstream, call, request):
                yield part
            return
        assert isinstance(request, ChatCompletionRequest)  # noqa: S101 -- there is no third kind
        if request.json_schema is not None or request.must_call:
            grammar = await asyncio.to_thread(answer_grammar, request)
            await self._grammars.require(upstream, request, grammar)
            async for part in _template_parts(upstream, call, request, grammar=grammar):
                yield part
            return
        for choice in range(request.n):
            yield Part(CHAT, _body(call, request, choice), 0, chat_edit(request))

    async def _unchanged(self, upstream: Upstream, call: Call, part: Part) -> httpx.Response:
        answer = await upstream.post(call.path, part.body)
        failed = answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR
        if not (failed and isinstance(call.request, ChatCompletionRequest) and UNREADABLE in await answer.aread()):
            return answer
        # Calls of tools were looked for in a text that holds none, and is no proper text either.
        await answer.aclose()
        as_text = [part async for part in _template_parts(upstream, call, call.request, grammar=None)]
        return await ask_whole(upstream, call, as_text, in_turn=False)

    async def _check(self, upstream: Upstream, request: GenerationFields) -> None:
        if request.logit_bias:
            check_logit_bias(request.logit_bias, (await self._known(upstream)).vocabulary_size)
        if request.grammar is not None:
            await self._grammars.require_own(upstream, request.grammar)
        if isinstance(request, ChatCompletionRequest):
            await self._check_tools(upstream, request)

    async def _check_tools(self, upstream: Upstream, request: ChatCompletionRequest) -> None:
        require_alone("grammar", request.grammar, request)
        if request.callable_tools or has_calls(request):
            check_template(request, (await self._known(upstream)).template, engine="llama_cpp")

    async def _known(self, upstream: Upstream) -> Facts:
        if upstream.key not in self._facts:
            capabilities = (await upstream.get("/props"))["chat_template_caps"]
            models = await upstream.get("/v1/models")
            self._facts[upstream.key] = Facts(
                template=TemplateFacts(
                    takes_tools=bool(capabilities["supports_tools"]),
                    takes_calls=bool(capabilities["supports_tool_calls"]),
                ),
                vocabulary_size=models["data"][0]["meta"]["n_vocab"],
            )
        return self._facts[upstream.key]


async def _text_parts(upstream: Upstream, call: Call, request: CompletionRequest) -> AsyncIterator[Part]:
    for number, prompt in enumerate(request.prompts):
        echoed = await _text(upstream, prompt) if request.echo else ""
        opening = {"text": echoed, "logprobs": None, "finish_reason": None} if echoed else None
        for choice in range(request.n):
            body = {**_body(call, request, choice), "prompt": prompt}
            yield Part(COMPLETIONS, body, number, TextEdit(request, echoed), opening)


async def _template_parts(
    upstream: Upstream, call: Call, request: ChatCompletionRequest, *, grammar: Grammar | None
) -> AsyncIterator[Part]:
    """The conversation as the template writes it, to be continued by the grammar and nothing else, or freely."""
    given = {"messages", "chat_template_kwargs"} | ({"tools"} if request.callable_tools else set())
    question = {name: call.body[name] for name in given if name in call.body}
    if "tools" in question:
        question["tool_choice"] = "none"  # the same text; else it would read their schemas, of which it knows less
    prompt = (await answered(upstream, "/apply-template", question))["prompt"]
    opening = {"delta": {"role": "assistant", "content": None}, "logprobs": None, "finish_reason": None}
    for choice in range(request.n):
        body = _without(_body(call, request, choice), OF_CHAT) | {"prompt": prompt}
        if grammar is not None:
            body["grammar"] = in_its_form(grammar.lark)
        if request.logprobs:
            body["logprobs"] = max(request.top_logprobs or 0, 1)
        yield Part(COMPLETIONS, body, 0, JsonEdit(request, grammar), opening)


def _body(call: Call, request: GenerationFields, choice: int) -> dict[str, Any]:
    body = _without(call.body, DROPPED)
    if request.token_limit is not None:
        body["max_tokens"] = request.token_limit
    if request.temperature == 0:
        # The best token is the best of one, too; without this, its samplers look at the whole vocabulary each time.
        body.setdefault("top_k", 1)
    if request.seed is not None:
        body |= {"seed": (request.seed + choice) % SEEDS, "cache_prompt": False}
    if isinstance(request, ChatCompletionRequest) and request.logprobs:
        body["top_logprobs"] = max(request.top_logprobs or 0, 1)
    if isinstance(request, CompletionRequest) and request.logprobs is not None:
        body["logprobs"] = max(request.logprobs, 1)
    return body


def _without(body: dict[str, Any], names: frozenset[str] | set[str]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def _passes_unchanged(call: Call) -> bool:
    """Whether the server's own answer is right as it is, so that its bytes can be passed on."""
    request = call.request
    if isinstance(request, ChatCompletionRequest):
        return not (request.n > 1 or request.logprobs or request.json_schema is not None or request.must_call)
    assert isinstance(request, CompletionRequest)  # noqa: S101 -- there is no third kind
    several = request.n * len(request.prompts) > 1
    return not (several or request.stream or request.echo or request.logprobs is not None)


async def _text(upstream: Upstream, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    try:
        text: str = (await answered(upstream, "/detokenize", {"tokens": prompt}))["content"]
    except Refused as refused:
        raise InvalidParameter("`prompt` holds a token that the model does not have", param="prompt") from refused
    return text
