"""From a text that is JSON, whole or in pieces, to a message: its content, or calls of tools once they are complete."""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any

from app.domain.errors import EngineFailed, UnsupportedField
from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.schemas import Grammar, calls_once, calls_rules, json_rule

log = logging.getLogger(__name__)


def answer_grammar(request: ChatCompletionRequest) -> Grammar:
    """A list of calls, or an instance of the schema. Which form a model was trained on does not matter here.

    Raises InvalidParameter.
    """
    if not request.must_call:
        return Grammar(f"start: {json_rule(request.json_schema or {})}\n", param="response_format")
    more = "" if calls_once(request) else '(", " call)*'
    return Grammar(f'start: "[" call {more} "]"\n{calls_rules(request)}', param="tools")


def require_alone(field: str, given: object, request: ChatCompletionRequest) -> None:
    """Raises UnsupportedField where a request says in two ways what its answer has to follow."""
    other = "response_format" if request.json_schema is not None else "tool_choice" if request.must_call else None
    if given is not None and other is not None:
        raise UnsupportedField(
            f"`{field}` cannot be honoured together with `{other}`: both say what the answer has to follow; leave one "
            f"of them out",
            param=field,
        )


class JsonMessage:
    """Collects one choice's text. `grammar` is what it has to follow; None: it is free."""

    def __init__(self, request: ChatCompletionRequest, grammar: Grammar | None) -> None:
        self._request = request
        self._grammar = grammar
        self._text = ""

    def put(self, text: str, choice: dict[str, Any]) -> None:
        """Writes what is to be told by now into the choice, in place, and empties it where that is nothing.

        Raises EngineFailed at the end of an answer that does not follow the grammar.
        """
        self._text += text
        if choice["finish_reason"] is not None:
            self._require_followed(choice["finish_reason"])
        message = self._message(text, choice)
        if message is None:
            choice.clear()
            return
        choice["delta" if self._request.stream else "message"] = message

    def _require_followed(self, reason: str) -> None:
        """An answer that was cut off, by the limit or a stop string, is the beginning of one that follows it."""
        grammar, whole = self._grammar, reason == "stop" and not self._request.stops
        if grammar is None or grammar.takes(self._text, whole=whole):
            return
        log.error("an engine wrote what does not follow its grammar: %r", self._text[:200])
        raise EngineFailed(
            f"the engine wrote an answer that does not follow `{grammar.param}`, which it was made to follow; send the "
            f"request again, or simplify the schema"
        )

    def _message(self, text: str, choice: dict[str, Any]) -> dict[str, Any] | None:
        role = {} if self._request.stream else {"role": "assistant", "refusal": None}
        if not self._request.must_call:
            return {**role, "content": text} if text else role
        if choice["finish_reason"] is None:
            return None
        calls = None if choice["finish_reason"] == "length" else _calls(self._text)
        if calls is None:
            # Cut off, by the limit or a stop string: not a call, but what there is of one.
            return {**role, "content": self._text}
        choice["finish_reason"] = "tool_calls"
        return {**role, "tool_calls": calls} if self._request.stream else {**role, "content": None, "tool_calls": calls}


def _calls(text: str) -> list[dict[str, Any]] | None:
    try:
        return [_call(index, given) for index, given in enumerate(json.loads(text))]
    except ValueError:
        return None


def _call(index: int, given: dict[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(given["arguments"], ensure_ascii=False)
    function = {"name": given["name"], "arguments": arguments}
    return {"index": index, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
