"""From a request to token ids and limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, Final

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from app.domain.errors import ContextLengthExceeded, InvalidParameter, UnsupportedField
from workers.serving.batching.adapters import LowRank
from workers.serving.batching.constraints import Constraint
from workers.serving.batching.generator import BatchedGenerator, Piece
from workers.serving.batching.sampling import SamplingSettings
from workers.serving.batching.tools import ToolCallReader, grammar
from workers.serving.contract.call import check_logit_bias
from workers.serving.contract.chat import ChatCompletionRequest, Message
from workers.serving.contract.completions import CompletionRequest
from workers.serving.contract.fields import GenerationFields

# What the library itself understands: a client's own template would be run, and other shapes of an answer come back.
NOT_FOR_TEMPLATES: Final = frozenset(signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"documents"}

Make = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Job:
    """One choice to generate."""

    prompt: list[int]
    settings: SamplingSettings
    max_tokens: int
    stops: list[str]
    constraint: Constraint | None = None
    reader: ToolCallReader | None = None
    adapter: LowRank | None = None


def chat_prompts(generator: BatchedGenerator, request: ChatCompletionRequest) -> list[list[int]]:
    """Raises InvalidParameter where the model's own template refuses the messages, or there is none."""
    if not generator.tokenizer.chat_template:
        raise InvalidParameter(
            "this model has no chat template; use /v1/completions with a prompt of your own", param="messages"
        )
    if generator.tool_format is None:
        _refuse_tools(request)
    return [_apply_template(generator.tokenizer, request)]


def _refuse_tools(request: ChatCompletionRequest) -> None:
    why = "this model's chat template has no place for tools, or writes their calls in a form that is not known here"
    if request.callable_tools:
        raise UnsupportedField(f"{why}; leave `tools` out, or use a model that was trained to call them", param="tools")
    if any(message.tool_calls or message.role == "tool" for message in request.messages):
        raise UnsupportedField(f"{why}; leave calls and their results out of `messages`", param="messages")


def text_prompts(generator: BatchedGenerator, request: CompletionRequest) -> list[list[int]]:
    """Raw prompts: no template. Raises InvalidParameter."""
    prompts = [generator.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in request.prompts]
    for prompt in prompts:
        if not prompt:
            raise InvalidParameter("`prompt` must hold at least one token", param="prompt")
        if max(prompt) >= generator.vocabulary_size:
            raise InvalidParameter(
                f"`prompt` holds the token {max(prompt)}; the model's vocabulary has {generator.vocabulary_size}",
                param="prompt",
            )
    return prompts


def jobs(
    generator: BatchedGenerator, prompts: list[list[int]], request: GenerationFields, *, param: str,
    adapter: LowRank | None = None,
) -> list[Job]:  # fmt: skip
    """One for each choice of each prompt. Raises ContextLengthExceeded where a prompt fills the context."""
    check_logit_bias(request.logit_bias, generator.vocabulary_size)
    constraint, reader = _extras(generator, request)
    made = []
    for prompt in prompts:
        room = generator.context_length - len(prompt)
        if room < 1:
            raise ContextLengthExceeded(
                f"this model's context length is {generator.context_length} tokens and `{param}` takes "
                f"{len(prompt)}; shorten it, or raise BITMILL_SERVING_CONTEXT_LENGTH if the model allows it",
                param=param,
            )
        limit = room if request.token_limit is None else min(room, request.token_limit)
        made += [
            Job(prompt, sampling(generator, request, choice), limit, request.stops, constraint(), reader(), adapter)
            for choice in range(request.n)
        ]
    return made


def _extras(generator: BatchedGenerator, request: GenerationFields) -> tuple[Make, Make]:
    """What makes each choice's own constraint and reader of calls, or None."""
    if not isinstance(request, ChatCompletionRequest):
        return _nothing, _nothing
    form = generator.tool_format
    rules = grammar(request, form, generator.special_tokens)
    param = "response_format" if request.json_schema is not None else "tools"
    grammars = generator.grammars
    if rules is not None and grammars is None:
        raise UnsupportedField(
            f"`{param}` cannot be followed with this model's tokenizer, which is not one of the library tokenizers; "
            f"leave it out",
            param=param,
        )
    tools = request.callable_tools
    one = request.parallel_tool_calls is False
    return (
        _nothing if rules is None or grammars is None else lambda: grammars.constraint(rules, param=param),
        _nothing if form is None or not tools else lambda: ToolCallReader(form, tools, at_most_one=one),
    )


def _nothing() -> None:
    return None


def prompt_echoes(
    generator: BatchedGenerator, request: CompletionRequest, prompts: list[list[int]], adapter: LowRank | None
) -> list[Piece]:
    """What each choice begins with: its prompt's own text, and the log-probabilities of its tokens if wanted."""
    echoes = []
    top = wanted_logprobs(request)
    for given, prompt in zip(request.prompts, prompts, strict=True):
        text = given if isinstance(given, str) else generator.decode(prompt)
        logprobs = () if top is None else tuple(generator.prompt_logprobs(prompt, top, adapter))
        echoes += [Piece(text=text, tokens=0, logprobs=logprobs)] * request.n
    return echoes


def sampling(generator: BatchedGenerator, request: GenerationFields, choice: int) -> SamplingSettings:
    """What the request leaves open comes from the model's generation_config; choices differ by seed."""
    own = generator.sampling_defaults
    return SamplingSettings(
        temperature=own.temperature if request.temperature is None else request.temperature,
        top_p=own.top_p if request.top_p is None else request.top_p,
        top_k=own.top_k if request.top_k is None else request.top_k,
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        seed=None if request.seed is None else request.seed + choice,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias={int(token): bias for token, bias in request.logit_bias.items()},
        top_logprobs=wanted_logprobs(request),
    )


def wanted_logprobs(request: GenerationFields) -> int | None:
    """How many of the best tokens each token comes with; None: no log-probabilities."""
    if isinstance(request, ChatCompletionRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs if isinstance(request, CompletionRequest) else None


def _apply_template(tokenizer: Any, request: ChatCompletionRequest) -> list[int]:
    tools = [tool.model_dump(exclude_none=True) for tool in request.callable_tools]
    given = request.chat_template_kwargs or {}
    if taken := sorted(given.keys() & NOT_FOR_TEMPLATES):
        raise InvalidParameter(
            f"`chat_template_kwargs` holds {taken[0]!r}, which is no variable of a template; leave it out",
            param="chat_template_kwargs",
        )
    try:
        encoded = tokenizer.apply_chat_template(
            for_template(request.messages),
            tools=tools or None,
            add_generation_prompt=True,
            return_dict=True,
            **given,
        )
    except (TemplateError, TypeError) as error:
        # Templates are programs: they raise on purpose, or stumble over what they do not expect.
        raise InvalidParameter(f"the model's chat template refuses the messages: {error}", param="messages") from error
    return list(encoded["input_ids"])


def for_template(messages: list[Message]) -> list[dict[str, Any]]:
    """As chat templates expect them: one string each, arguments as objects, tools' results with their names."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or ()}
    return [_for_template(message, names) for message in messages]


def _for_template(message: Message, names: dict[str, str]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    given: dict[str, Any] = {"role": role, "content": message.text}
    optional = {
        "name": message.name or names.get(message.tool_call_id or ""),
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
        "tool_calls": [
            _call(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()
        ],
    }
    return given | {name: value for name, value in optional.items() if value}


def _call(id_: str, name: str, arguments: str) -> dict[str, Any]:
    try:
        parsed = json.loads(arguments)
    except ValueError as error:
        raise InvalidParameter(
            f"`messages` holds a call of {name!r} whose `arguments` are not JSON: {arguments[:100]!r}", param="messages"
        ) from error
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": parsed}}
