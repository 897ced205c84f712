"""From a request to token ids and limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from app.domain.errors import InvalidParameter
from workers.serving.batching.generator import BatchedGenerator
from workers.serving.batching.requests import (
    ChatCompletionRequest,
    CompletionFields,
    CompletionRequest,
    Message,
)
from workers.serving.batching.sampling import SamplingSettings


@dataclass(frozen=True, slots=True)
class Job:
    """One choice to generate."""

    prompt: list[int]
    settings: SamplingSettings
    max_tokens: int
    stops: list[str]


def chat_prompts(generator: BatchedGenerator, request: ChatCompletionRequest) -> list[list[int]]:
    """Raises InvalidParameter where the model's own template refuses the messages, or there is none."""
    return [_apply_template(generator.tokenizer, request.messages)]


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


def jobs(generator: BatchedGenerator, prompts: list[list[int]], request: CompletionFields, *, param: str) -> list[Job]:
    """One for each choice of each prompt. Raises InvalidParameter where a prompt fills the context."""
    made = []
    for prompt in prompts:
        room = generator.context_length - len(prompt)
        if room < 1:
            raise InvalidParameter(
                f"this model's context length is {generator.context_length} tokens and `{param}` takes "
                f"{len(prompt)}; shorten it, or raise BITMILL_SERVING_CONTEXT_LENGTH if the model allows it",
                param=param,
            )
        limit = min(room, request.token_limit or room)
        made += [Job(prompt, sampling(generator, request, choice), limit, request.stops) for choice in range(request.n)]
    return made


def sampling(generator: BatchedGenerator, request: CompletionFields, choice: int) -> SamplingSettings:
    """What the request leaves open comes from the model's generation_config; choices differ by seed."""
    top_logprobs = None
    if isinstance(request, ChatCompletionRequest) and request.logprobs:
        top_logprobs = request.top_logprobs or 0
    own = generator.sampling_defaults
    return SamplingSettings(
        temperature=own.temperature if request.temperature is None else request.temperature,
        top_p=own.top_p if request.top_p is None else request.top_p,
        top_k=own.top_k if request.top_k is None else request.top_k,
        seed=None if request.seed is None else request.seed + choice,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=_bias(request.logit_bias, generator.vocabulary_size),
        top_logprobs=top_logprobs,
    )


def _apply_template(tokenizer: Any, messages: list[Message]) -> list[int]:
    if not tokenizer.chat_template:
        raise InvalidParameter(
            "this model has no chat template; use /v1/completions with a prompt of your own", param="messages"
        )
    conversation = [message.for_template() for message in messages]
    try:
        encoded = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)
    except TemplateError as error:
        raise InvalidParameter(f"the model's chat template refuses the messages: {error}", param="messages") from error
    return list(encoded["input_ids"])


def _bias(given: dict[str, float], vocabulary_size: int) -> dict[int, float]:
    for token in given:
        if not token.isdecimal() or int(token) >= vocabulary_size:
            raise InvalidParameter(
                f"`logit_bias` has the key {token!r}; keys are token ids below {vocabulary_size}",
                param="logit_bias",
            )
    return {int(token): bias for token, bias in given.items()}
