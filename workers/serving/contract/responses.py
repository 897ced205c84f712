"""POST /v1/responses: text in and out, functions, and nothing stored. It is asked of engines as a chat completion.

https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from workers.serving.contract.chat import FunctionName, Name, PlainFormat
from workers.serving.contract.fields import MOST_TOP_LOGPROBS, Extras, Strict, StringOrList, Text

LOGPROBS = "message.output_text.logprobs"


class TextInput(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: str
    # Left over from an answer that is sent back.
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Content = Annotated[
    Annotated[str, Tag("(string)")] | Annotated[list[TextInput], Field(min_length=1), Tag("(list)")], StringOrList
]


class Item(Strict):
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class MessageItem(Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    phase: str | None = None


class CallItem(Item):
    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: str


class OutputItem(Item):
    type: Literal["function_call_output"]
    call_id: Text
    output: Content


def _kind_of_item(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return {"function_call": "(call)", "function_call_output": "(output)"}.get(str(kind), "(message)")


InputItem = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[CallItem, Tag("(call)")]
    | Annotated[OutputItem, Tag("(output)")],
    Discriminator(_kind_of_item),
]


class FunctionTool(Strict):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(FunctionName):
    type: Literal["function"]


class SchemaText(BaseModel, extra="forbid", strict=True):
    type: Literal["json_schema"]
    name: Name
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


def _kind_of_format(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "(schema)" if kind == "json_schema" else "(plain)"


class TextOptions(Strict):
    format: (
        Annotated[
            Annotated[PlainFormat, Tag("(plain)")] | Annotated[SchemaText, Tag("(schema)")],
            Discriminator(_kind_of_format),
        ]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None


class ResponsesStreamOptions(Strict):
    include_obfuscation: Literal[False] = False


def _kind_of_choice(value: Any) -> str:
    return "(word)" if isinstance(value, str) else "(named)"


class ResponsesRequest(Extras):
    model: Text
    input: Annotated[
        Annotated[Text, Tag("(string)")] | Annotated[list[InputItem], Field(min_length=1), Tag("(list)")], StringOrList
    ]
    instructions: str | None = None
    keep_alive: float | str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    stream: bool = False
    stream_options: ResponsesStreamOptions | None = None
    text: TextOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("(word)")] | Annotated[NamedFunction, Tag("(named)")],
            Discriminator(_kind_of_choice),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    user: str | None = None
    # Values that ask for nothing beyond what happens anyway. Nothing is stored, so `store` has to be said or left out.
    store: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def chat_body(self, given: dict[str, Any]) -> dict[str, Any]:
        """The same as a chat completion; `given` is the body as it came, of which the engines' own fields are kept."""
        same = {"model", "keep_alive", "temperature", "top_p", "stream", "parallel_tool_calls", "user"}
        body = {name: given[name] for name in (same | Extras.model_fields.keys()) & given.keys()}
        body["messages"] = self._messages()
        if self.max_output_tokens is not None:
            body["max_completion_tokens"] = self.max_output_tokens
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        if self.include:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return body | self._format() | self._tools()

    def _format(self) -> dict[str, Any]:
        wanted = self.text.format if self.text is not None else None
        if wanted is None:
            return {}
        if isinstance(wanted, PlainFormat):
            return {"response_format": {"type": wanted.type}}
        schema = wanted.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def _tools(self) -> dict[str, Any]:
        if not self.tools:
            return {}
        functions = [tool.model_dump(exclude_none=True, exclude={"type"}) for tool in self.tools]
        tools = {"tools": [{"type": "function", "function": function} for function in functions]}
        choice = self.tool_choice
        if isinstance(choice, NamedFunction):
            return {**tools, "tool_choice": {"type": "function", "function": {"name": choice.name}}}
        return tools if choice is None else {**tools, "tool_choice": choice}

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for item in self.input:
            if isinstance(item, CallItem):
                _add_call(messages, item)
            elif isinstance(item, OutputItem):
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
            else:
                messages.append({"role": item.role, "content": _text(item.content)})
        return messages


def _text(content: str | list[TextInput]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _add_call(messages: list[dict[str, Any]], item: CallItem) -> None:
    """Calls of one turn are one message, together with the text before them."""
    call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)
