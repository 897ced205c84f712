"""Answers that have to follow a schema: what an engine cannot follow is refused, and what it did not is no answer."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.domain.errors import EngineFailed, InvalidParameter, UnsupportedField
from tests.fakes.upstream import USAGE, Reply, Server, obeying
from workers.serving.contract.keywords import keywords, without
from workers.serving.contract.schemas import Grammar, json_rule
from workers.serving.dialects.base import DONE, Dialect, event, streamed
from workers.serving.dialects.llama_cpp import LlamaCppDialect
from workers.serving.dialects.vllm import VllmDialect

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
# As pydantic writes HttpUrl.
LINK = {"type": "object", "properties": {"url": {"type": "string", "format": "uri", "maxLength": 2083, "minLength": 1}},
        "required": ["url"], "additionalProperties": False}  # fmt: skip
WRITTEN = '{"city": "Rome"}'


def format_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def forced(schema: dict[str, Any]) -> dict[str, Any]:
    function = {"name": "f", "parameters": schema}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}


def writes(written: str, reason: str = "stop") -> Reply:
    """In pieces of five characters where it is a stream, in vLLM's shape and in llama.cpp's."""

    def reply(body: dict[str, Any]) -> httpx.Response:
        told = {"text": written, "message": {"role": "assistant", "content": written}}
        if not body.get("stream"):
            choice = {"index": 0, **told, "logprobs": None, "finish_reason": reason}
            return httpx.Response(200, json={"choices": [choice], "usage": USAGE})
        return streamed(pieces(written, reason), nothing)

    return reply


async def pieces(written: str, reason: str) -> Any:
    for start in range(0, len(written), 5):
        part = written[start : start + 5]
        yield event({"choices": [{"index": 0, "text": part, "delta": {"content": part}, "finish_reason": None}]})
    yield event({"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": reason}], "usage": USAGE})
    yield DONE


async def nothing() -> None:
    """Nothing is open beside the generator."""


def llama_cpp(reply: Reply, *, but: str = "nothing") -> tuple[Server, Dialect]:
    def template(_: Any) -> httpx.Response:
        return httpx.Response(200, json={"prompt": "P"})

    return Server(apply_template=template, v1__completions=obeying(reply, but=but)), LlamaCppDialect()


def vllm(reply: Reply) -> tuple[Server, Dialect]:
    def count(body: Any) -> httpx.Response:
        return httpx.Response(200, json={"count": len(str(body)), "max_model_len": 99})

    return Server(v1__chat__completions=reply, tokenize=count), VllmDialect()


ENGINES = pytest.mark.parametrize("engine", [llama_cpp, vllm])


@ENGINES
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_follows_its_schema(engine: Any, stream: bool) -> None:
    server, dialect = engine(writes(WRITTEN))
    _, answer = server.ask(CHAT, dialect, messages=HI, stream=stream, **format_of(CITY))
    if not stream:
        assert answer["choices"][0]["message"]["content"] == WRITTEN
        return
    choices = [choice for value in answer for choice in value["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == WRITTEN
    assert choices[-1]["finish_reason"] == "stop"


BROKEN = [("Sure! The city is Rome.", "stop"), ('{"city": "Rome"', "stop"), ('{"city": "Oslo"}', "stop"), ("", "stop"),
          ("Sure! The city", "length"), ("[1, 2", "length"), (WRITTEN + " x", "stop")]  # fmt: skip


@ENGINES
@pytest.mark.parametrize(("written", "reason"), BROKEN)
def test_an_answer_that_does_not_is_none(engine: Any, written: str, reason: str) -> None:
    server, dialect = engine(writes(written, reason))
    with pytest.raises(EngineFailed, match="does not follow `response_format`"):
        server.ask(CHAT, dialect, messages=HI, **format_of(CITY))
    _, events = server.ask(CHAT, dialect, messages=HI, stream=True, **format_of(CITY))
    assert events[-1]["error"]["code"] == "engine_failed"
    assert all(choice["finish_reason"] is None for value in events[:-1] for choice in value["choices"])


@ENGINES
@pytest.mark.parametrize(("written", "reason"), [("I call f", "stop"), ('[{"name": "g", "arguments": {}}]', "stop")])
def test_a_call_that_had_to_come_and_did_not(engine: Any, written: str, reason: str) -> None:
    server, dialect = engine(writes(written, reason))
    with pytest.raises(EngineFailed, match="does not follow `tools`"):
        server.ask(CHAT, dialect, messages=HI, **forced(CITY))
    _, events = server.ask(CHAT, dialect, messages=HI, stream=True, **forced(CITY))
    assert events[-1]["error"]["code"] == "engine_failed"


@ENGINES
@pytest.mark.parametrize(
    ("written", "reason", "fields"),
    [
        ('{"city": "Ro', "length", {}),
        ('{"city": "Rome"', "stop", {"stop": "}"}),
        ("", "stop", {"stop": "{"}),
    ],
)
def test_an_answer_that_was_cut_off_follows_as_far_as_it_goes(
    engine: Any, written: str, reason: str, fields: dict[str, Any]
) -> None:
    server, dialect = engine(writes(written, reason))
    _, answer = server.ask(CHAT, dialect, messages=HI, **format_of(CITY), **fields)
    assert answer["choices"][0]["finish_reason"] == reason


@pytest.mark.parametrize(("asks", "param"), [(format_of, "response_format"), (forced, "tools")])
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engines_own_library_refuses_is_refused_with_its_keyword(asks: Any, param: str, stream: bool) -> None:
    """llguidance in this process knows the format `uri`, the one inside llama.cpp's server does not."""
    server, dialect = llama_cpp(writes("Sure! https://example.com"), but='"format"')
    with pytest.raises(InvalidParameter, match=r"does not know what 'format' asks for here \('uri'\)") as raised:
        server.ask(CHAT, dialect, messages=HI, stream=stream, **asks(LINK))
    assert raised.value.param == param
    # Only grammars were tried: nothing was generated from the client's messages.
    assert {body["prompt"] for _, body in server.asked} == {"x"}


def test_a_schema_that_no_keyword_alone_makes_too_much() -> None:
    server, dialect = llama_cpp(writes(WRITTEN), but="json")
    with pytest.raises(InvalidParameter, match="refuses the schema; simplify it"):
        server.ask(CHAT, dialect, messages=HI, **format_of(CITY))


def test_a_grammar_is_tried_once_for_each_engine() -> None:
    server, dialect = llama_cpp(writes(WRITTEN))
    for _ in range(3):
        server.ask(CHAT, dialect, messages=HI, **format_of(CITY))
    assert [body["prompt"] for path, body in server.asked if path == "/v1/completions"] == ["x", "P", "P", "P"]


def test_a_grammar_of_the_clients_own_is_tried_too() -> None:
    server, dialect = llama_cpp(writes("a"), but="strange")
    server.ask(COMPLETIONS, dialect, prompt="A", grammar='root ::= "a"')
    server.ask(COMPLETIONS, dialect, prompt="A", grammar='%llguidance {}\nstart: "a"\n')
    for wrong in ("%llguidance {}\nstart: nowhere\n", '%llguidance {}\nstart: "strange"\n'):
        with pytest.raises(InvalidParameter) as raised:
            server.ask(COMPLETIONS, dialect, prompt="A", grammar=wrong)
        assert raised.value.param == "grammar"


@pytest.mark.parametrize(
    ("engine", "field", "value"),
    [(llama_cpp, "grammar", 'root ::= "a"'), (vllm, "structured_outputs", {"regex": "a"})],
)
@pytest.mark.parametrize("asks", [format_of, forced])
def test_two_things_to_follow_are_one_too_many(engine: Any, field: str, value: Any, asks: Any) -> None:
    server, dialect = engine(writes(WRITTEN))
    with pytest.raises(UnsupportedField, match="together with") as raised:
        server.ask(CHAT, dialect, messages=HI, **asks(CITY), **{field: value})
    assert raised.value.param == field


def test_keywords_are_no_names_of_properties() -> None:
    schema = {
        "type": "object",
        "properties": {"format": {"type": "string", "format": "uri"}, "not": {"items": [{"pattern": "a"}, True]}},
        "$defs": {"x": {"anyOf": [{"minLength": 1}, {"not": {"format": "date"}}]}},
        "enum": [{"maximum": 3}],
    }
    assert set(keywords(schema)) == {
        "type", "properties", "format", "items", "pattern", "$defs", "anyOf", "minLength", "not", "enum"
    }  # fmt: skip
    less = without(schema, "format")
    assert "format" not in keywords(less)
    assert less["properties"]["format"] == {"type": "string"}
    assert less["enum"] == schema["enum"]
    assert schema["$defs"]["x"]["anyOf"][1]["not"] == {"format": "date"}  # a copy was made


@pytest.mark.parametrize("hostile", ["^(a+)+$", "^(a|a)*$", "(.*a){20}"])
def test_a_text_is_held_against_a_pattern_in_linear_time(hostile: str) -> None:
    grammar = Grammar(f"start: {json_rule({'type': 'string', 'pattern': hostile})}\n", param="response_format")
    assert not grammar.takes(json.dumps("a" * 5000 + "!" if "{20}" not in hostile else "b" * 5000), whole=True)


def test_part_of_a_character_at_a_cut_off_end() -> None:
    grammar = Grammar(f"start: {json_rule({'type': 'string'})}\n", param="response_format")
    assert grammar.takes('"caf\ufffd', whole=False)
    assert not grammar.takes('"caf\ufffd', whole=True)
