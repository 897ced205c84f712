"""POST /v1/chat/completions. https://platform.openai.com/docs/api-reference/chat/create"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, StringConstraints, Tag

from workers.serving.contract.fields import MOST_TOP_LOGPROBS, GenerationFields, Strict, StringOrList, Text

# Any but `data:`, which carries its content.
ADDRESS = re.compile(r"\s*(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)
MEDIA = ("image_url", "input_audio", "file", "video_url", "audio_url")
Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(Strict):
    type: Literal["text"]
    text: str


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: str


class MediaPart(BaseModel, extra="allow"):
    """An image, a sound or a file: its fields are for an engine that understands it."""

    type: Literal["image_url", "input_audio", "file", "video_url", "audio_url"]

    @property
    def addresses(self) -> list[str]:
        """What an engine would fetch: from the machine's own network, or its files."""
        return [text for text in _strings(self.model_extra) if ADDRESS.match(text)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


def _kind_of_part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return "(media)" if kind in MEDIA else "(refusal)" if kind == "refusal" else "(text)"


Part = Annotated[
    Annotated[TextPart, Tag("(text)")]
    | Annotated[RefusalPart, Tag("(refusal)")]
    | Annotated[MediaPart, Tag("(media)")],
    Discriminator(_kind_of_part),
]
Content = Annotated[
    Annotated[str, Tag("(string)")] | Annotated[list[Part], Field(min_length=1), Tag("(list)")], StringOrList
]


class CalledFunction(Strict):
    name: Text
    arguments: str


class ToolCall(Strict):
    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # left over where a client put a stream together


class Message(Strict):
    """A turn of a conversation. Which fields may be there depends on the role."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    # Clients send back what they were given, empty fields included.
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def text(self) -> str:
        """All of it in one string: the parts of a message are lines."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def media(self) -> list[str]:
        parts = self.content if isinstance(self.content, list) else []
        return [part.type for part in parts if isinstance(part, MediaPart)]

    @property
    def addresses(self) -> list[str]:
        parts = self.content if isinstance(self.content, list) else []
        return [address for part in parts if isinstance(part, MediaPart) for address in part.addresses]


class Function(Strict):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    name: Text


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionName


def _kind_of_choice(value: Any) -> str:
    return "(word)" if isinstance(value, str) else "(named)"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("(word)")] | Annotated[NamedTool, Tag("(named)")],
    Discriminator(_kind_of_choice),
]


class PlainFormat(Strict):
    type: Literal["text", "json_object"]


class NamedSchema(BaseModel, extra="forbid", strict=True):
    name: Name = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: NamedSchema


def _kind_of_format(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "(schema)" if kind == "json_schema" else "(plain)"


ResponseFormat = Annotated[
    Annotated[PlainFormat, Tag("(plain)")] | Annotated[SchemaFormat, Tag("(schema)")], Discriminator(_kind_of_format)
]


class ChatCompletionRequest(GenerationFields):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(min_length=1)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    # Values that ask for nothing beyond what happens anyway.
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] = False
    verbosity: Literal["medium"] | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that an answer may call."""
        return [] if self.tools is None or self.tool_choice == "none" else self.tools

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call of a tool."""
        return bool(self.callable_tools) and self.tool_choice not in (None, "auto")

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """What the whole answer must be an instance of, if it must be JSON."""
        if isinstance(self.response_format, SchemaFormat):
            return self.response_format.json_schema.schema_
        if self.response_format is not None and self.response_format.type == "json_object":
            return {"type": "object"}
        return None
