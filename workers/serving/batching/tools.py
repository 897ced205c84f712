"""Calls of tools: how families of models write them, how they are read, and how they are made certain.

Reading is done by transformers' own parser of responses; this file says which form a chat template asks for.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import Environment, TemplateError, meta
from transformers.utils.chat_parsing import ResponseParser

from app.domain.errors import UnsupportedField
from workers.serving.batching.constraints import text_rule
from workers.serving.contract.chat import ChatCompletionRequest, Tool
from workers.serving.contract.schemas import calls_once, calls_rules, json_rule

log = logging.getLogger(__name__)

ANYTHING: Final[dict[str, Any]] = {"type": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """A form of calls. `marks` are what a chat template of that form holds.

    `before` and `after` enclose a call, whose JSON names its arguments `arguments`; with `as_list`, one pair
    encloses a list of all calls. `before` None: answers cannot be made to take this form. `opening` is the text
    at which `opens` matches.
    """

    marks: tuple[str, ...]
    opens: str
    closes: str | None = None
    content: str = "json"
    content_arguments: dict[str, Any] | None = None
    transform: dict[str, Any] | None = None
    before: tuple[str, ...] | None = None
    after: tuple[str, ...] = ()
    arguments: str = "arguments"
    as_list: bool = False
    opening: str

    @property
    def texts(self) -> tuple[str, ...]:
        """What calls are enclosed in. Where one is a special token, an answer's text must keep it."""
        return (*self.marks, *(self.before or ()), *self.after)

    def parser(self, tools: list[dict[str, Any]]) -> ResponseParser:
        calls = {"open_pattern": self.opens, "repeats": True, "content": self.content}
        given = {"close_pattern": self.closes, "content_args": self.content_arguments, "transform": self.transform}
        calls |= {name: value for name, value in given.items() if value is not None}
        template = {
            "defaults": {"role": "assistant"},
            "start_anchor": "\x00",  # the parser demands one, and reads none where there is no prefix
            "fields": {"tool_calls": calls, "content": {"content": "text"}},
        }
        return ResponseParser(template, prefix="", tools=tools)


# The first whose marks are all in a template is its form.
FORMATS: Final[tuple[ToolFormat, ...]] = (
    ToolFormat(  # Qwen 3.5, Qwen3-Coder
        marks=("<tool_call>", "<function=", "<parameter="),
        opens=r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
        closes=r"</function>\s*</tool_call>",
        content="xml-inline",
        content_arguments={"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
        transform={"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        after=("\n", "</tool_call>"),
        opening="<tool_call>",
    ),
    ToolFormat(  # Hermes, Qwen 2.5 and 3, SmolLM3
        marks=("<tool_call>",),
        opens=r"\s*<tool_call>",
        closes=r"</tool_call>",
        before=("<tool_call>", "\n"),
        after=("\n", "</tool_call>"),
        opening="<tool_call>",
    ),
    ToolFormat(  # Mistral Small 3.2 and later
        marks=("[TOOL_CALLS]", "[ARGS]"),
        opens=r"\s*\[TOOL_CALLS\](?P<name>[^\[\s]+)\[ARGS\]",
        closes=r"(?=\[TOOL_CALLS\])",
        transform={"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        opening="[TOOL_CALLS]",
    ),
    ToolFormat(  # Mistral before that
        marks=("[TOOL_CALLS]",),
        opens=r"\s*\[TOOL_CALLS\]",
        before=("[TOOL_CALLS]",),
        as_list=True,
        opening="[TOOL_CALLS]",
    ),
    ToolFormat(  # Llama 3.1 to 3.3
        marks=('"name":', '"parameters":'),
        opens=r'\s*(?:<\|python_tag\|>\s*)?(?=\{\s*"name"\s*:)',
        before=(),
        arguments="parameters",
        opening="{",
    ),
)


def format_of(chat_template: str | None) -> ToolFormat | None:
    """The form that a template asks for; None where it has no place for tools, or asks for one unknown here."""
    if not chat_template or "tools" not in _variables(chat_template):
        return None
    plain = chat_template.replace('\\"', '"')
    return next((form for form in FORMATS if all(mark in plain for mark in form.marks)), None)


def _variables(chat_template: str) -> set[str]:
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 -- parsed, never rendered
    try:
        return meta.find_undeclared_variables(environment.parse(chat_template))
    except TemplateError:
        # Templates may use tags of transformers' own, which only its environment knows.
        return {"tools"} if "tools" in chat_template else set()


@dataclass(frozen=True, slots=True)
class Called:
    """A call of a tool, with its arguments as JSON."""

    id: str
    name: str
    arguments: str

    def view(self) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class ToolCallReader:
    """Takes an answer's text as it comes, and tells calls from content. What only looks like a call is content."""

    def __init__(self, form: ToolFormat, tools: list[Tool], *, at_most_one: bool) -> None:
        self._parser = form.parser([tool.model_dump(exclude_none=True) for tool in tools])
        self._form = form
        self._at_most_one = at_most_one
        self._names = {tool.function.name for tool in tools}
        self._text = ""
        self._call_start = 0  # where in the text the latest call begins
        self._broken = False
        self.calls: list[Called] = []

    def read(self, text: str, *, final: bool) -> tuple[str, list[Called]]:
        """The content and the calls that are certain by now."""
        if self._broken:
            return text, []
        known = len(self.calls)
        whole = self._text + text
        content = ""
        try:
            for found in self._events(text, final):
                content += self._content(found)
        except (ValueError, KeyError) as error:
            log.info("a call of a tool could not be read and stays text: %s", error)
            self._broken = True
            content += whole[self._call_start :]
        return content, self.calls[known:]

    def _events(self, text: str, final: bool) -> Iterator[dict[str, Any]]:
        # One by one, because the parser tells nothing of what it was fed together with the end of a broken call.
        for character in text:
            self._text += character
            yield from self._parser.feed(character)
        if final:
            yield from self._parser.finalize()[1]

    def _content(self, found: dict[str, Any]) -> str:
        if found["field"] == "content" and found["type"] == "region_chunk":
            text: str = found["text"]
            return text
        if found["field"] == "tool_calls" and found["type"] == "region_open":
            self._call_start = self._text.rfind(self._form.opening)
        if found["field"] == "tool_calls" and found["type"] == "region_close":
            self._add(found["value"])
        return ""

    def _add(self, value: Any) -> None:
        for one in value if isinstance(value, list) else [value]:
            function = one.get("function", one)
            if function["name"] not in self._names:
                raise ValueError(f"{function['name']!r} is no tool of the request")
            arguments = function.get("arguments", function.get("parameters", {}))
            if not (self._at_most_one and self.calls):
                text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
                self.calls.append(Called(f"call_{uuid.uuid4().hex[:24]}", function["name"], text))


def grammar(request: ChatCompletionRequest, form: ToolFormat | None, special_tokens: dict[str, int]) -> str | None:
    """What the whole answer has to follow, or None. Raises UnsupportedField for a form that cannot be enforced."""
    schema = request.json_schema
    if not request.must_call and schema is None:
        return None
    if not request.callable_tools:
        return f"start: {json_rule(schema or ANYTHING)}\n"
    if form is None or form.before is None:
        raise UnsupportedField(
            "this model writes calls of tools in a form that cannot be enforced; use tool_choice 'auto' without "
            "a response_format",
            param="tool_choice" if request.must_call else "response_format",
        )
    rules = f"calls: {_calls_rule(request, form, special_tokens)}\n{calls_rules(request, arguments=form.arguments)}"
    if request.must_call:
        return f"start: calls\n{rules}"
    return f"start: calls | answer\n{rules}answer: {json_rule(schema or ANYTHING)}\n"


def _calls_rule(request: ChatCompletionRequest, form: ToolFormat, special_tokens: dict[str, int]) -> str:
    before = " ".join(text_rule(text, special_tokens) for text in form.before or ())
    after = " ".join(text_rule(text, special_tokens) for text in form.after)
    one = calls_once(request)
    if form.as_list:
        return f'{before} "[" call "]"' if one else f'{before} "[" call (", " call)* "]"'
    enclosed = f"{before} call {after}"
    return enclosed if one or not form.after else f'{enclosed} ("\\n" {enclosed})*'
