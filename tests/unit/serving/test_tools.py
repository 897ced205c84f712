"""Calls of tools: read from what models write, and enforced by a grammar."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
import torch

from app.domain.errors import InvalidParameter, UnsupportedField
from tests.fakes.checkpoints import CHAT_TEMPLATE, TOOLS_TEMPLATE, tiny_tokenizer
from tests.fakes.tokenizers import STYLES, styled_tokenizer
from workers.serving.batching.constraints import Constraint, Grammars
from workers.serving.batching.prompts import _apply_template
from workers.serving.batching.sampling import SamplingSettings, SamplingState, choose
from workers.serving.batching.tools import FORMATS, ToolCallReader, ToolFormat, format_of, grammar
from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.parsing import parse_request
from workers.serving.contract.schemas import json_rule

QWEN_CODER, HERMES, NEW_MISTRAL, MISTRAL, LLAMA = FORMATS
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS = [
    {"type": "function", "function": {"name": "forecast", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
VOCABULARY = 512


def request(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, **fields}
    return parse_request(ChatCompletionRequest, body)


def read(form: ToolFormat, text: str, *, piece: int, one: bool = False) -> tuple[str, list[tuple[str, Any]]]:
    reader = ToolCallReader(form, request().tools or [], at_most_one=one)
    pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
    content = "".join(reader.read(part, final=False)[0] for part in pieces) + reader.read("", final=True)[0]
    return content, [(call.name, json.loads(call.arguments)) for call in reader.calls]


CALL = {"city": "Rome", "days": 2}
WRITTEN = json.dumps({"name": "forecast", "arguments": CALL})


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (TOOLS_TEMPLATE, HERMES),
        ("{% if tools %}<tool_call>\n<function=x>\n<parameter=y>{% endif %}", QWEN_CODER),
        ("{% for tool in tools %}[AVAILABLE_TOOLS][TOOL_CALLS]{% endfor %}", MISTRAL),
        ("{% for tool in tools %}[AVAILABLE_TOOLS][TOOL_CALLS][ARGS]{% endfor %}", NEW_MISTRAL),
        ('{% if tools is not none %}{{ \'{"name": function name, "parameters": dict}\' }}{% endif %}', LLAMA),
        (CHAT_TEMPLATE, None),
        ("{% if tools %}a form of its own{% endif %}", None),
        ("{# tools are not used #}<tool_call>", None),
        (None, None),
    ],
)
def test_a_template_tells_its_form(template: str | None, form: ToolFormat | None) -> None:
    assert format_of(template) is form


@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (HERMES, f"<tool_call>\n{WRITTEN}\n</tool_call>", "", 1),
        (HERMES, f"I look.\n<tool_call>\n{WRITTEN}\n</tool_call>\n<tool_call>{WRITTEN}</tool_call>", "I look.", 2),
        (
            QWEN_CODER,
            "<tool_call>\n<function=forecast>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n"
            "</parameter>\n</function>\n</tool_call>",
            "",
            1,
        ),
        (MISTRAL, f"[TOOL_CALLS] [{WRITTEN}, {WRITTEN}]", "", 2),
        (NEW_MISTRAL, f"[TOOL_CALLS]forecast[ARGS]{json.dumps(CALL)}" * 2, "", 2),
        (LLAMA, WRITTEN.replace("arguments", "parameters"), "", 1),
        (HERMES, "a < b and <tool is no call", "a < b and <tool is no call", 0),
        (LLAMA, 'a set {"x": 1}', 'a set {"x": 1}', 0),
    ],
)  # fmt: skip
def test_calls_are_told_from_content(form: ToolFormat, text: str, content: str, calls: int, piece: int) -> None:
    found, read_calls = read(form, text, piece=piece)
    assert found == content
    assert [(name, {key: value for key, value in arguments.items() if key != "days"} | {"days": 2})
            for name, arguments in read_calls] == [("forecast", CALL)] * calls  # fmt: skip


@pytest.mark.parametrize("piece", [1, 5, 1000])
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "forecast", oops\n</tool_call> and more',
        '<tool_call>\n{"name": "unheard_of", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "forecast", "arg',
    ],
)
def test_what_only_looks_like_a_call_is_content(text: str, piece: int) -> None:
    assert read(HERMES, text, piece=piece) == (text, [])


def test_one_call_where_one_is_allowed() -> None:
    text = f"<tool_call>{WRITTEN}</tool_call>" * 2
    assert len(read(HERMES, text, piece=4, one=True)[1]) == 1


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    tokenizer = tiny_tokenizer()
    return Grammars(tokenizer, vocabulary_size=VOCABULARY, ends=[tokenizer.eos_token_id])


def generated(constraint: Constraint, seed: int) -> str:
    """What a model without any preference writes."""
    state = SamplingState(SamplingSettings(seed=seed), constraint=constraint)
    tokens: list[int] = []
    while constraint.length is None:
        scores = torch.zeros(1, VOCABULARY)
        token = int(choose(scores, [state])[0])
        state.record(token, scores[0])
        tokens.append(token)
        assert constraint.failure is None
        assert len(tokens) < 1000
    text: str = tiny_tokenizer().decode(tokens, skip_special_tokens=True)
    return text


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "forecast"}}])
def test_a_forced_call_is_always_one(grammars: Grammars, form: ToolFormat, choice: Any) -> None:
    asked = request(tool_choice=choice, parallel_tool_calls=False)
    rules = grammar(asked, form, {})
    assert rules is not None
    for seed in range(10):
        content, calls = read(form, generated(grammars.constraint(rules, param="tools"), seed), piece=1000)
        ((name, arguments),) = calls
        assert content == ""
        jsonschema.validate(arguments, PARAMETERS if name == "forecast" else {"type": "object", "maxProperties": 0})
        assert name == "forecast" or choice == "required"


def test_a_form_that_cannot_be_enforced_is_refused() -> None:
    with pytest.raises(UnsupportedField) as raised:
        grammar(request(tool_choice="required"), QWEN_CODER, {})
    assert raised.value.param == "tool_choice"
    assert grammar(request(), QWEN_CODER, {}) is None


def test_a_schema_beside_tools_leaves_both_open(grammars: Grammars) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    rules = grammar(request(response_format=format_), HERMES, {})
    assert rules is not None
    texts = {generated(grammars.constraint(rules, param="tools"), seed)[:5] for seed in range(40)}
    assert texts <= {'"yes"', '"no"', "<tool"}
    assert len(texts) > 1


@pytest.mark.parametrize("seed", range(10))
def test_an_instance_of_a_schema(grammars: Grammars, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "more": {"type": ["integer", "null"], "maximum": 99},
        },
        "required": ["name", "more"],
    }
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}}}
    rules = grammar(request(tools=None, response_format=format_), None, {})
    assert rules is not None
    jsonschema.validate(json.loads(generated(grammars.constraint(rules, param="response_format"), seed)), schema)


def test_a_grammar_that_cannot_be_followed_names_the_field(grammars: Grammars) -> None:
    with pytest.raises(InvalidParameter, match="uniqueItems") as raised:
        grammars.constraint('start: %json {"type": "array", "uniqueItems": true}', param="response_format")
    assert raised.value.param == "response_format"


def test_requests_of_one_grammar_do_not_share_a_place(grammars: Grammars) -> None:
    rules = 'start: "abc"\n'
    first, second = (grammars.constraint(rules, param="x") for _ in range(2))
    assert generated(first, random.randrange(9)) == generated(second, random.randrange(9)) == "abc"


@pytest.mark.parametrize("style", STYLES)
def test_every_kind_of_tokenizer_follows_a_grammar_to_the_byte(style: str) -> None:
    tokenizer = styled_tokenizer(style)
    size = len(tokenizer) + 40  # models have rows that stand for no token
    grammars = Grammars(tokenizer, vocabulary_size=size, ends=[tokenizer.eos_token_id])
    constraint = grammars.constraint(f"start: {json_rule({'enum': ['aé b 日']})}", param="x")
    tokens: list[int] = []
    while constraint.length is None:
        scores = torch.zeros(size)
        constraint.mask(scores)
        tokens.append(int(scores.argmax()))
        constraint.accept(tokens[-1])
        assert len(tokens) < 50
    assert tokenizer.decode(tokens) == '"aé b 日"'


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "max_length", "return_tensors", "tokenizer_kwargs"])
def test_a_client_brings_no_template_of_its_own(name: str) -> None:
    """A template is a program, and these are arguments of the library's."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    asked = request(tools=None, chat_template_kwargs={name: "{% for i in range(9) %}x{% endfor %}"})
    with pytest.raises(InvalidParameter, match=name) as refused:
        _apply_template(tokenizer, asked)
    assert refused.value.param == "chat_template_kwargs"
    assert _apply_template(tokenizer, request(tools=None, chat_template_kwargs={"enable_thinking": False}))
