"""From a body to a request, or to the error that says what is wrong with it."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from pydantic import ValidationError

from app.domain.errors import BitmillError, InvalidParameter, InvalidRequest, UnsupportedField
from workers.serving.contract.chat import ChatCompletionRequest, Message, NamedTool
from workers.serving.contract.completions import CompletionRequest, EmbeddingsRequest
from workers.serving.contract.fields import MOST_CHOICES_IN_ALL, MOST_INPUTS, GenerationFields, Strict

# OpenAI's fields that nothing here can honour, and what to do instead.
NOT_HONOURED: Final[dict[str, str]] = {
    "access_programs": "leave it out",
    "audio": "models answer in text",
    "background": "send the request and wait for its answer, or stream it",
    "background_options": "send the request and wait for its answer, or stream it",
    "context_management": "send the messages that the model is to see",
    "conversation": "nothing is stored: send the earlier messages in `input`",
    "dimensions": "leave it out; vectors have the model's own size",
    "function_call": "use `tool_choice`",
    "functions": "use `tools`",
    "image": "models answer in text",
    "max_tool_calls": "no tools run here: calls are answered to you",
    "moderation": "nothing is moderated here",
    "prediction": "leave it out",
    "previous_response_id": "nothing is stored: send the earlier messages in `input`",
    "prompt_cache_options": "leave it out; prompts are cached anyway while a model is loaded",
    "prompt_cache_retention": "leave it out; prompts are cached anyway while a model is loaded",
    "reasoning": "leave it out",
    "suffix": "put what comes before and after into the prompt, as the model was trained to see it",
    "web_search_options": "give the model a tool of your own",
}

R = TypeVar("R", bound=Strict)


def parse_request(kind: type[R], body: Any) -> R:
    """Raises UnsupportedField or InvalidParameter. A null field counts as absent, as in OpenAI's API."""
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {type(body).__name__}")
    try:
        request = kind.model_validate(without_nulls(body))
    except ValidationError as error:
        raise _refusal(error) from error
    if isinstance(request, GenerationFields):
        _check_generation(request)
    if isinstance(request, EmbeddingsRequest) and len(request.inputs) > MOST_INPUTS:
        raise InvalidParameter(
            f"`input` has {len(request.inputs)} texts, and one request may have {MOST_INPUTS}; send several requests",
            param="input",
        )
    return request


def without_nulls(body: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in body.items() if value is not None}
    if isinstance(given.get("messages"), list):
        given["messages"] = [_message(message) for message in given["messages"]]
    return given


def _message(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    return {name: value for name, value in given.items() if value is not None}


def _refusal(error: ValidationError) -> BitmillError:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    path = ".".join(str(part) for part in first["loc"] if not _is_tag(part))
    if first["type"] == "extra_forbidden":
        return UnsupportedField(_unknown(path), param=field)
    if first["type"] == "literal_error":
        expected = first.get("ctx", {}).get("expected", "another value")
        return UnsupportedField(f"`{path}` can be {expected}, not {first['input']!r:.100}", param=field)
    if first["type"] == "missing":
        return InvalidParameter(f"`{path}` is missing", param=field)
    return InvalidParameter(f"`{path}`: {first['msg']}, not {first['input']!r:.100}", param=field)


def _unknown(path: str) -> str:
    if path in NOT_HONOURED:
        return f"`{path}` is not supported: {NOT_HONOURED[path]}"
    return f"`{path}` is not a field of this request; leave it out"


def _is_tag(part: object) -> bool:
    """The name of a union's member, which is no part of the request."""
    return isinstance(part, str) and part.startswith("(")


def _check_generation(request: GenerationFields) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidParameter("`stream_options` is for requests with stream=true only", param="stream_options")
    if isinstance(request, ChatCompletionRequest):
        _check_chat(request)
    if isinstance(request, CompletionRequest):
        _check_completion(request)


def _check_chat(request: ChatCompletionRequest) -> None:
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidParameter("`top_logprobs` needs logprobs=true", param="top_logprobs")
    if request.tool_choice is not None and request.tool_choice != "none" and request.tools is None:
        raise InvalidParameter("`tool_choice` needs `tools`", param="tool_choice")
    if isinstance(request.tool_choice, NamedTool):
        _check_name(request.tool_choice.function.name, [tool.function.name for tool in request.tools or []])
    for index, message in enumerate(request.messages):
        _check_message(message, f"messages.{index}")


def _check_name(chosen: str, known: list[str]) -> None:
    if chosen not in known:
        raise InvalidParameter(
            f"`tool_choice` names {chosen!r}; `tools` has {', '.join(map(repr, known))}", param="tool_choice"
        )


def _check_message(message: Message, path: str) -> None:
    if message.content is None and not (message.role == "assistant" and (message.tool_calls or message.refusal)):
        raise InvalidParameter(f"`{path}.content` is missing", param="messages")
    if message.role == "tool" and message.tool_call_id is None:
        raise InvalidParameter(f"`{path}.tool_call_id` is missing: it says which call this answers", param="messages")
    if message.tool_calls is not None and message.role != "assistant":
        raise InvalidParameter(
            f"`{path}.tool_calls` is for the role 'assistant', not {message.role!r}", param="messages"
        )


def _check_completion(request: CompletionRequest) -> None:
    prompts = len(request.prompts)
    if prompts * request.n > MOST_CHOICES_IN_ALL:
        raise InvalidParameter(
            f"`prompt` has {prompts} prompts, which with n = {request.n} are {prompts * request.n} choices, and one "
            f"request may ask for {MOST_CHOICES_IN_ALL}; send several requests",
            param="prompt",
        )
    if request.best_of is not None and request.best_of != request.n:
        raise UnsupportedField(
            f"`best_of` = {request.best_of} is not supported with n = {request.n}: every choice is returned; "
            f"ask for that many with `n` and choose by their logprobs",
            param="best_of",
        )
    if request.max_tokens == 0 and not (request.echo and request.logprobs is not None):
        raise InvalidParameter("`max_tokens` = 0 asks for nothing without `echo` and `logprobs`", param="max_tokens")


REQUESTS: Final[dict[str, type[Strict]]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingsRequest,
}
