"""What a model's chat template has a place for."""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.errors import UnsupportedField
from workers.serving.contract.chat import ChatCompletionRequest


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    takes_tools: bool
    takes_calls: bool


def has_calls(request: ChatCompletionRequest) -> bool:
    """Whether the conversation holds calls of tools or what came of them."""
    return any(message.tool_calls or message.role == "tool" for message in request.messages)


def check_template(request: ChatCompletionRequest, facts: TemplateFacts, *, engine: str) -> None:
    """Raises UnsupportedField where a template would pass over what a request gives it."""
    why = "this model's chat template has no place for"
    if request.callable_tools and not facts.takes_tools:
        raise UnsupportedField(
            f"{why} `tools`; leave them out, or use a model that was trained to call them", param="tools"
        )
    if has_calls(request) and not facts.takes_calls:
        raise UnsupportedField(f"{why} calls and their results; leave them out of `messages`", param="messages")
    if request.callable_tools and request.json_schema is not None:
        raise UnsupportedField(
            f"the engine {engine!r} cannot honour `response_format` together with tools that may be called; "
            "leave one of them out, or serve the model from safetensors on the engine 'transformers'",
            param="response_format",
        )
