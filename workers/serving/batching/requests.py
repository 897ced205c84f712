"""Requests as the transformers engine takes them. A field that it cannot honour is refused, never ignored.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from app.domain.errors import BitmillError, InvalidParameter, UnsupportedField

MOST_CHOICES = 16

Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, StringConstraints(min_length=1)]
TokenIds = list[Annotated[int, Field(ge=0)]]


class StreamOptions(BaseModel, extra="forbid"):
    include_usage: bool = False


class TextFormat(BaseModel, extra="forbid"):
    type: Literal["text"]


class CompletionFields(BaseModel, extra="forbid", strict=True):
    """What both routes share. Literals admit the one value that asks for nothing."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    stop: Stop | list[Stop] = Field(default_factory=list)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    seed: int | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    user: str | None = None  # meant for the provider's own statistics, of which there are none

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(BaseModel, extra="forbid"):
    type: Literal["text"]
    text: str


class Message(BaseModel, extra="forbid", strict=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates expect it: one string, and the older name of the developer's role."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        named = {"name": self.name} if self.name is not None else {}
        return {"role": role, "content": text, **named}


class ChatCompletionRequest(CompletionFields):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: TextFormat | None = None
    store: Literal[False] = False

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(CompletionFields):
    prompt: str | Annotated[list[str], Field(min_length=1)] | TokenIds | list[TokenIds]
    echo: Literal[False] = False
    best_of: Literal[1] = 1

    @property
    def prompts(self) -> list[str] | list[TokenIds]:
        """Each prompt, as text or as token ids."""
        prompt: Any = self.prompt
        single = isinstance(prompt, str) or all(isinstance(item, int) for item in prompt)
        return [prompt] if single else prompt


R = TypeVar("R", bound=CompletionFields)


def parse_request(kind: type[R], body: Any) -> R:
    """Raises UnsupportedField or InvalidParameter. A null field counts as absent, as in OpenAI's API."""
    if not isinstance(body, dict):
        raise InvalidParameter(f"the body must be a JSON object, not {type(body).__name__}")
    given = {name: value for name, value in body.items() if value is not None}
    try:
        request = kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from error
    _check_combinations(request)
    return request


def _refusal(error: ValidationError) -> BitmillError:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    path = ".".join(str(part) for part in first["loc"] if not _is_union_tag(part))
    if first["type"] in ("extra_forbidden", "literal_error"):
        value = "" if first["type"] == "extra_forbidden" else f" with the value {first['input']!r}"
        return UnsupportedField(f"the engine of this model does not support `{path}`{value}", param=field)
    if first["type"] == "missing":
        return InvalidParameter(f"`{path}` is missing", param=field)
    return InvalidParameter(f"`{path}`: {first['msg']}, not {first['input']!r:.100}", param=field)


def _is_union_tag(part: object) -> bool:
    """Pydantic names the member of a union that it tried, such as `list[…]` or `constrained-str`."""
    return isinstance(part, str) and (part in ("str", "constrained-str") or "[" in part)


def _check_combinations(request: CompletionFields) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidParameter("`stream_options` is for requests with stream=true only", param="stream_options")
    if isinstance(request, ChatCompletionRequest) and request.top_logprobs is not None and not request.logprobs:
        raise InvalidParameter("`top_logprobs` needs logprobs=true", param="top_logprobs")
