"""Keyword by keyword: an engine follows a schema, or refuses it with a 400. Nothing between."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest

from tests.fakes.checkpoints import tiny_tokenizer
from tests.fakes.openai_requests import ask

DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
A_OR_B: Any = {"a": DIGIT, "b": DIGIT}
FORMATS = [
    "binary", "byte", "date", "date-time", "duration", "email", "hostname", "idn-email", "ipv4", "ipv6", "iri",
    "json-pointer", "nonsense", "password", "path", "regex", "time", "uri", "uri-reference", "uri-template", "uuid",
]  # fmt: skip
PATTERNS = [
    "^a{2,4}b$", "ab", "^ab", "ab$", "^a$|^b$", "a|b", "^(?=a)a$", "^(?!a)[ab]$", r"^(a)\1$", r"^\d{3}$", r"^\w{3}$",
    r"^\ba$", "^.{3}$", "^[^a]{3}$", '^"a"$', "^a+?b$",
]  # fmt: skip


def text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


def array(**more: Any) -> dict[str, Any]:
    return {"type": "array", "items": DIGIT, "maxItems": 3, **more}


def record(**more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": A_OR_B, "required": ["a"], "additionalProperties": False, **more}


SCHEMAS: dict[str, dict[str, Any]] = {
    **{f"format {name}": text(format=name) for name in FORMATS},
    **{f"pattern {pattern}": text(pattern=pattern, maxLength=8) for pattern in PATTERNS},
    "lengths": text(minLength=3, maxLength=5),
    "format and maxLength": text(format="date", maxLength=4),
    "integers": {"type": "integer", "minimum": 5, "exclusiveMaximum": 17},
    "multipleOf": {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 100},
    "const": {"const": {"a": [1, None]}},
    "enum": {"enum": ["a", 1, None, {"b": 2}]},
    "enum of another type": {"type": "integer", "enum": ["a", 3]},
    "several types": {"type": ["integer", "null"], "minimum": 1, "maximum": 5},
    "array": array(minItems=2),
    "prefixItems": array(prefixItems=[DIGIT, {"type": "boolean"}], items=False, minItems=2),
    "uniqueItems": array(uniqueItems=True, minItems=3),
    "contains": array(contains={"const": 1}),
    "minContains": array(contains={"const": 1}, minContains=2),
    "unevaluatedItems": array(unevaluatedItems=False),
    "required": record(required=["a", "b"]),
    "required and forbidden": record(required=["c"]),
    "additionalProperties": record(additionalProperties={"type": "boolean"}, maxProperties=2),
    "patternProperties": record(properties={}, required=[], patternProperties={"^x[0-9]$": DIGIT}, minProperties=1),
    "propertyNames": record(properties={}, required=[], additionalProperties=DIGIT, propertyNames={"maxLength": 2}),
    "minProperties": record(required=[], minProperties=2),
    "dependentRequired": record(dependentRequired={"a": ["b"]}),
    "dependentSchemas": record(dependentSchemas={"a": {"required": ["b"]}}),
    "unevaluatedProperties": record(unevaluatedProperties=False),
    "anyOf": {"anyOf": [DIGIT, {"type": "boolean"}]},
    "oneOf": {"oneOf": [DIGIT, {"type": "boolean"}]},
    "oneOf that overlaps": {"oneOf": [DIGIT, {"type": "integer", "minimum": 5, "maximum": 15}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, DIGIT]},
    "not": {"not": text()},
    "not among others": {**DIGIT, "not": {"const": 1}},
    "if": record(**{"if": {"properties": {"a": {"const": 1}}}, "then": {"required": ["b"]}}),
    "$ref": {"$ref": "#/$defs/x", "$defs": {"x": DIGIT}},
    "$ref and others": {"$ref": "#/$defs/x", "maximum": 3, "$defs": {"x": DIGIT}},
    "$ref to nothing": {"$ref": "#/$defs/none"},
    "$ref elsewhere": {"$ref": "http://example.com/x"},
    "$dynamicRef": {"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x", **DIGIT}}},
    "false": record(properties={"a": DIGIT, "b": False}),
    "lenient": text(format="nonsense", **{"x-guidance": {"lenient": True}}),
}
# With what an answer of a type begins, even one that was cut off.
OPENINGS: dict[str, str] = {"string": '"', "object": "{", "array": "["}
# Not one of them may be refused: pydantic writes them for everyday models.
EVERYDAY = {
    "anyOf", "array", "const", "enum", "format date", "format date-time", "format uuid", "integers", "lengths",
    "pattern ab", "required", "several types", "$ref", "$ref and others",
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_followed_or_refused(client: openai.OpenAI, model: str, name: str) -> None:
    schema = SCHEMAS[name]
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    try:
        answer = written(client, model, response_format=given)
    except openai.BadRequestError as error:
        require_refusal(error, name, "response_format")
        return
    (choice,) = answer.choices
    require_followed(choice.message.content, choice.finish_reason, schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_forced_call_follows_its_schema_or_is_refused(client: openai.OpenAI, calling_model: str, name: str) -> None:
    schema = {**SCHEMAS[name]}
    definitions = schema.pop("$defs", {})
    parameters = {
        "type": "object", "properties": {"v": schema}, "required": ["v"], "additionalProperties": False,
        "$defs": definitions,
    }  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    forced: Any = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    try:
        answer = written(client, calling_model, **forced)
        stream = written(client, calling_model, **forced, stream=True)
    except openai.BadRequestError as error:
        require_refusal(error, name, "tools")
        return
    (choice,) = answer.choices
    require_called(choice.message, choice.finish_reason, parameters)
    told = openai.types.chat.ChatCompletionMessage(role="assistant", content="", tool_calls=[])
    for chunk in stream:
        (choice,) = chunk.choices
        told.content = (told.content or "") + (choice.delta.content or "")
        told.tool_calls = [*(told.tool_calls or []), *(choice.delta.tool_calls or [])]
    require_called(told, choice.finish_reason, parameters)


def written(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    # Random weights would write without an end: what ends a text is made likelier.
    ends = {str(tiny_tokenizer().encode(character)[0]): 6 for character in ('"', "}", "]")}
    return ask(client, model, max_tokens=150, temperature=1, seed=4, logit_bias=ends, **fields)


def require_called(message: Any, reason: str | None, parameters: dict[str, Any]) -> None:
    if reason == "length":
        assert (message.content or "[")[0] in "[<"  # as calls begin
        return
    assert reason == "tool_calls"
    (call,) = message.tool_calls
    require_followed(call.function.arguments, "stop", parameters)


def require_followed(told: str, reason: str | None, schema: dict[str, Any]) -> None:
    if reason == "length":
        assert told.startswith(OPENINGS.get(str(schema.get("type")), ""))
        return
    assert reason == "stop"
    jsonschema.Draft202012Validator(schema).validate(json.loads(told))


def require_refusal(raised: openai.BadRequestError, name: str, param: str) -> None:
    error = raised.response.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_parameter")
    assert "cannot be followed" in error["message"]
    assert name not in EVERYDAY, error["message"]
    keyword = name.split(" ", 1)[0]
    if "nsatisfiable" not in error["message"] and keyword in (
        "format",
        "uniqueItems",
        "contains",
        "minContains",
        "propertyNames",
        "not",
        "if",
        "oneOf",
    ):
        assert keyword in error["message"]
