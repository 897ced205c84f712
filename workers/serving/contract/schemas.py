"""Answers that must be JSON: the grammars that engines follow, in llguidance's variant of Lark.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. This module needs llguidance, which is no ML
library: the serving host checks with it what an engine would pass over.
"""

from __future__ import annotations

import json
from typing import Any, Final

from llguidance import LLMatcher, LLTokenizer

from app.domain.errors import InvalidParameter
from workers.serving.contract.chat import ChatCompletionRequest, NamedTool, Tool

# As json.dumps writes. Where blanks are free, a model may write nothing else.
LAYOUT: Final = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
# A text is held against a grammar byte by byte, whatever tokens it was written in.
BYTES: Final = LLTokenizer("byte")


def json_rule(schema: dict[str, Any]) -> str:
    """The instances of a schema, as a part of a rule."""
    return f"%json {json.dumps({**schema, 'x-guidance': LAYOUT})}"


class Grammar:
    """What an answer has to follow. `param` is the field of the request that asks for it."""

    def __init__(self, lark: str, *, param: str) -> None:
        """Raises InvalidParameter where it, or a schema in it, asks for what cannot be followed."""
        self.lark = lark
        self.param = param
        self._matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(lark), log_level=0)
        refuse(self._matcher.get_error(), param=param)

    def takes(self, text: str, *, whole: bool) -> bool:
        """Whether the text follows it; if it is not the `whole` answer, whether it is the beginning of one that does.

        Takes time in proportion to the text, whatever patterns a schema holds: about a microsecond a byte.
        """
        # A character of which a part is missing where the answer was cut off.
        text = text if whole else text.rstrip("\ufffd")
        matcher = self._matcher.deep_copy()
        given = list(text.encode())
        return matcher.try_consume_tokens(given) == len(given) and (not whole or matcher.is_accepting())


def refuse(message: str, *, param: str) -> None:
    if message:
        reason = message.strip().splitlines()[0].partition(": ")[2]
        raise InvalidParameter(f"`{param}` cannot be followed: {reason or message}", param=param)


def chosen_tools(request: ChatCompletionRequest) -> list[Tool]:
    """The tools that an answer may call, or the one that it must."""
    tools = request.callable_tools
    if isinstance(request.tool_choice, NamedTool):
        return [tool for tool in tools if tool.function.name == request.tool_choice.function.name]
    return tools


def call_schema(tool: Tool, *, arguments: str = "arguments") -> dict[str, Any]:
    """A call of a tool, with its arguments under the name `arguments`."""
    parameters = tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
    # References look for definitions at the top.
    definitions: dict[str, Any] = {name: parameters[name] for name in ("$defs", "definitions") if name in parameters}
    own = {name: value for name, value in parameters.items() if name not in definitions}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, arguments: own},
        "required": ["name", arguments],
        "additionalProperties": False,
        **definitions,
    }


def calls_rules(request: ChatCompletionRequest, *, arguments: str = "arguments") -> str:
    """Rules by the name of `call` for one call of any tool that may be called."""
    tools = chosen_tools(request)
    rules = [f"call_{index}: {json_rule(call_schema(tool, arguments=arguments))}\n" for index, tool in enumerate(tools)]
    return f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}\n{''.join(rules)}"


def calls_once(request: ChatCompletionRequest) -> bool:
    """Whether an answer may hold one call only."""
    return isinstance(request.tool_choice, NamedTool) or request.parallel_tool_calls is False
