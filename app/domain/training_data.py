"""Files to train on: JSONL in OpenAI's chat format, or plain prompts with their completions.

https://platform.openai.com/docs/api-reference/fine-tuning/chat-input names the fields. A file is read line by line, so
that its size does not matter; the first line at fault is named with its number, the reason and what to do.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, NoReturn

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from app.domain.errors import InvalidParameter

# Far more than any context holds; a file that is no JSONL is not read into memory whole.
MAX_LINE_BYTES: Final = 16 * 1024**2
# JSON writes characters beyond the first 65536 as two escapes; one alone stands for none.
SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
# What OpenAI's older models had, by what to write now.
OUTDATED: Final = {"functions": "tools", "function_call": "tool_calls", "text": "prompt and completion"}


class TextPart(BaseModel, extra="forbid", frozen=True):
    type: Literal["text"]
    text: str


class FunctionCall(BaseModel, extra="forbid", frozen=True):
    name: str = Field(min_length=1)
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, value: str) -> str:
        try:
            parsed = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{value[:60]!r} is no JSON; write the arguments as a JSON object in a string") from error
        if not isinstance(parsed, dict):
            raise ValueError(f"{value[:60]!r} is no JSON object; name each argument")
        return value


class ToolCall(BaseModel, extra="forbid", frozen=True):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(BaseModel, extra="forbid", frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[TextPart, ...] | None = None
    name: str | None = None
    weight: Annotated[int, Field(ge=0, le=1)] | None = None
    tool_calls: Annotated[tuple[ToolCall, ...], Field(min_length=1)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _fits_role(self) -> Message:
        if self.role != "assistant" and self.weight is not None:
            raise ValueError(f"weight belongs to assistant messages; take it off the one of role {self.role!r}")
        if self.role != "assistant" and self.tool_calls:
            raise ValueError(f"tool_calls belong to assistant messages; take them off the one of role {self.role!r}")
        if self.role != "tool" and self.tool_call_id is not None:
            raise ValueError(f"tool_call_id belongs to tool messages; take it off the one of role {self.role!r}")
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing; write the message's text")
        return self

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)

    @property
    def is_learned(self) -> bool:
        """Whether the model learns to write this message."""
        return self.role == "assistant" and self.weight != 0


class ToolFunction(BaseModel, extra="forbid", frozen=True):
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel, extra="forbid", frozen=True):
    type: Literal["function"]
    function: ToolFunction


class Conversation(BaseModel, extra="forbid", frozen=True):
    """One example in chat format."""

    messages: tuple[Message, ...] = Field(min_length=1)
    tools: tuple[Tool, ...] | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _has_something_to_learn(self) -> Conversation:
        if not any(message.is_learned for message in self.messages):
            raise ValueError("no assistant message of weight 1 is in it; add what the model should answer")
        return self

    def template_messages(self) -> list[dict[str, Any]]:
        """As chat templates expect them: one string each, arguments as objects, tools' results with their names."""
        names = {call.id: call.function.name for message in self.messages for call in message.tool_calls or ()}
        return [_for_template(message, names) for message in self.messages]

    def template_tools(self) -> list[dict[str, Any]] | None:
        return [tool.model_dump(exclude_none=True) for tool in self.tools] if self.tools else None


class Completion(BaseModel, extra="forbid", frozen=True):
    """One example as plain text: what is given, and what is learned."""

    prompt: str
    completion: str = Field(min_length=1)


Record = Conversation | Completion


@dataclass(frozen=True)
class TrainingData:
    """What a checked file holds. `conversations` of its examples are in chat format."""

    examples: int
    conversations: int
    size_bytes: int


def check_training_file(path: Path, *, param: str = "training_file") -> TrainingData:
    """Reads every line. Raises InvalidParameter, naming `param`, for the first that cannot be trained on."""
    examples = conversations = 0
    for _, record in read_records(path, param=param):
        examples += 1
        conversations += isinstance(record, Conversation)
    return TrainingData(examples, conversations, path.stat().st_size)


def read_records(path: Path, *, param: str = "training_file") -> Iterator[tuple[int, Record]]:
    """Each example with the number of its line. Raises InvalidParameter, naming `param`."""
    count = 0
    with path.open("rb") as file:
        for number, line in _lines(file, param):
            yield number, parse_record(line, number, param)
            count += 1
    if not count:
        raise InvalidParameter("the file holds no example; write one JSON object per line", param=param)


def _lines(file: BinaryIO, param: str) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers, without their ends and the file's byte order mark."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            _refuse(number, f"it has more than {MAX_LINE_BYTES} bytes", "write one JSON object per line", param)
        content = line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else line.strip()
        if content:
            yield number, content


def parse_record(line: bytes, number: int, param: str = "training_file") -> Record:
    """One line's example. Raises InvalidParameter."""
    value = _parse_object(line, number, param)
    if not value.keys() & {"messages", "prompt", "completion"}:
        known = next((f"{old!r} is outdated; use {new}" for old, new in OUTDATED.items() if old in value), None)
        remedy = known or 'write {"messages": […]} or {"prompt": "…", "completion": "…"}'
        _refuse(number, "it has neither messages nor prompt and completion", remedy, param)
    kind = Conversation if "messages" in value else Completion
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        reason, remedy = _explain(error)
        _refuse(number, reason, remedy, param)


def _parse_object(line: bytes, number: int, param: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        _refuse(number, f"byte {error.start + 1} is no UTF-8", "save the file as UTF-8", param)
    except (ValueError, RecursionError) as error:
        _refuse(number, f"it is no JSON ({error})", "write one JSON object per line", param)
    if not isinstance(value, dict):
        kind = type(value).__name__
        _refuse(number, f"it holds a JSON {kind}, not an object", "write one JSON object per line", param)
    if SURROGATE.search(line) and not _is_text(value):
        _refuse(number, "it has half of a surrogate pair", "write characters as they are, or both halves", param)
    return value


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _explain(error: ValidationError) -> tuple[str, str]:
    """The first thing that is wrong with a record, and what to do."""
    first = _deepest(error.errors())
    # The names of a union's members stand among the keys.
    keys = [key for key in first["loc"] if key != "str" and not str(key).startswith("tuple[")]
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    if first["type"] == "value_error":
        reason, _, remedy = str(first["ctx"]["error"]).partition("; ")
        return f"{place}: {reason}" if place else reason, remedy
    if first["type"] == "extra_forbidden":
        new = OUTDATED.get(str(keys[-1]))
        return f"{place} is unknown", f"use {new}" if new else "take it out"
    if first["type"] == "missing":
        return f"{place} is missing", "add it"
    return f"{place}: {first['msg']}", "correct it"


def _deepest(errors: list[Any]) -> Any:
    """The first error; where a value may be a string or parts and is parts, what is wrong with them."""
    place = errors[0]["loc"][:-1]
    return max((error for error in errors if error["loc"][: len(place)] == place), key=lambda error: len(error["loc"]))


def _for_template(message: Message, names: dict[str, str]) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    calls = [
        {"id": call.id, "type": call.type, "function": _function(call.function)} for call in message.tool_calls or ()
    ]
    optional = {
        "name": message.name or names.get(message.tool_call_id or ""),
        "tool_call_id": message.tool_call_id,
        "tool_calls": calls,
    }
    return {"role": role, "content": message.text} | {name: value for name, value in optional.items() if value}


def _function(function: FunctionCall) -> dict[str, Any]:
    return {"name": function.name, "arguments": json.loads(function.arguments)}


def _refuse(number: int, reason: str, remedy: str, param: str) -> NoReturn:
    raise InvalidParameter(f"line {number}: {reason}; {remedy}", param=param)
