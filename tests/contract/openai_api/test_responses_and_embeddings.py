"""The two routes beside completions. The same for every engine."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import jsonschema
import openai
import pytest

from tests.fakes.checkpoints import tiny_tokenizer
from tests.fakes.openai_requests import (
    ANSWER_SCHEMA,
    CONTEXT_LENGTH,
    ENGINES,
    HELLO,
    PARAMETERS,
    TOOLS,
    ask,
    complete,
    refused,
)
from tests.fakes.serving import error_of


class TestResponses:
    def test_a_text(self, client: openai.OpenAI, model: str) -> None:
        answer = client.responses.create(
            model=model, input="What is the capital of France?", instructions="Be brief.", max_output_tokens=8,
            temperature=0, extra_body={"top_k": 5},
        )  # fmt: skip
        messages: Any = [{"role": "system", "content": "Be brief."}, *HELLO]
        same = ask(client, model, messages=messages, max_tokens=8, temperature=0)
        assert answer.output_text == same.choices[0].message.content
        assert answer.model == model
        assert answer.usage is not None
        assert answer.usage.input_tokens == same.usage.prompt_tokens
        assert answer.usage.output_tokens == same.usage.completion_tokens
        assert answer.status == {"length": "incomplete", "stop": "completed"}[same.choices[0].finish_reason]
        assert answer.store is False

    def test_a_stream_says_the_same(self, client: openai.OpenAI, model: str) -> None:
        request: Any = {"model": model, "input": HELLO, "max_output_tokens": 8, "temperature": 0}
        whole = client.responses.create(**request)
        # The official client's own helper puts the events together, and fails where one does not fit.
        with client.responses.stream(**request) as stream:
            events = list(stream)
        final: Any = events[-1]
        assert final.response.output_text == whole.output_text
        raw = list(client.responses.create(**request, stream=True))
        assert [event.sequence_number for event in raw] == list(range(len(raw)))
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == whole.output_text
        assert events[-1].type == f"response.{whole.status}"

    def test_a_schema_and_logprobs(self, client: openai.OpenAI, model: str) -> None:
        answer = client.responses.create(
            model=model, input="A place", max_output_tokens=300, include=["message.output_text.logprobs"],
            text={"format": {"type": "json_schema", "name": "place", "schema": ANSWER_SCHEMA, "strict": True}},
        )  # fmt: skip
        jsonschema.validate(json.loads(answer.output_text), ANSWER_SCHEMA)
        assert answer.output[0].content[0].logprobs  # type: ignore[union-attr]

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_function(self, client: openai.OpenAI, calling_model: str, stream: bool) -> None:
        tools: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
        request: Any = {"model": calling_model, "tools": tools, "temperature": 1, "max_output_tokens": 200}
        first: Any = {"input": HELLO, "tool_choice": {"type": "function", "name": "forecast"}}
        if stream:
            with client.responses.stream(**request, **first) as events:
                answer: Any = list(events)[-1].response  # type: ignore[union-attr]
        else:
            answer = client.responses.create(**request, **first)
        (call,) = answer.output
        assert (call.type, call.name) == ("function_call", "forecast")
        jsonschema.validate(json.loads(call.arguments), PARAMETERS)
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        history: Any = [*HELLO, *[item.model_dump(exclude_none=True) for item in answer.output], result]
        history = [{k: v for k, v in item.items() if k not in ("parsed_arguments",)} for item in history]
        later = client.responses.create(**(request | {"temperature": 0}), input=history)
        assert later.usage.input_tokens > answer.usage.input_tokens

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"previous_response_id": "resp_1"}, "previous_response_id"),
            ({"store": True}, "store"),
            ({"background": True}, "background"),
            ({"conversation": "c"}, "conversation"),
            ({"tools": [{"type": "web_search"}]}, "tools"),
            ({"input": []}, "input"),
            ({"input": "mill " * CONTEXT_LENGTH * 2}, "input"),
            ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nonsense"}}}}, "text"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"truncation": "auto"}, "truncation"),
        ],
    )
    def test_what_is_not_honoured(self, client: openai.OpenAI, model: str, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(openai.BadRequestError) as raised:
            client.responses.create(**({"model": model, "input": "Hi"} | fields))
        if param != "input" or fields["input"] == []:
            assert error_of(raised)["param"] == param
        else:
            assert error_of(raised)["code"] == "context_length_exceeded"


class TestEmbeddings:
    TEXTS: ClassVar[Any] = ["The miller carried the grain.", "In 1783 two brothers sent a sheep into the sky.", "A"]

    def test_vectors(self, client: openai.OpenAI, embedding_model: str) -> None:
        # The client asks for base64 by itself, and turns it into numbers.
        answer = client.embeddings.create(model=embedding_model, input=self.TEXTS)
        assert [item.index for item in answer.data] == [0, 1, 2]
        assert answer.model == embedding_model
        tokens = [tiny_tokenizer().encode(text) for text in self.TEXTS]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))
        for item in answer.data:
            assert len(item.embedding) == 256
            assert sum(value * value for value in item.embedding) == pytest.approx(1, abs=1e-3)
        for given in (self.TEXTS[1], tokens[1]):
            alone = client.embeddings.create(model=embedding_model, input=given, encoding_format="float")
            assert cosine(alone.data[0].embedding, answer.data[1].embedding) > 0.999

    def test_engines_agree(self, client: openai.OpenAI) -> None:
        first, *others = (
            client.embeddings.create(model=f"embedding:{engine}", input=self.TEXTS).data for engine in ENGINES
        )
        for other in others:
            for left, right in zip(first, other, strict=True):
                assert cosine(left.embedding, right.embedding) > 0.98

    def test_a_model_of_the_wrong_kind(
        self, client: openai.OpenAI, engine: str, model: str, embedding_model: str
    ) -> None:
        with pytest.raises(openai.BadRequestError) as raised:
            client.embeddings.create(model=model, input="A")
        assert error_of(raised)["param"] == "model"
        # llama.cpp lets a decoder do both.
        for make in (ask, complete) if engine == "transformers" else ():
            assert refused(client, embedding_model, make, logit_bias={})["param"] == "model"

    @pytest.mark.parametrize(
        ("fields", "param"),
        [({"dimensions": 64}, "dimensions"), ({"input": ""}, "input"), ({"input": [[99999999]]}, None)],
    )
    def test_refusals(
        self, client: openai.OpenAI, embedding_model: str, fields: dict[str, Any], param: str | None
    ) -> None:
        with pytest.raises(openai.BadRequestError) as raised:
            client.embeddings.create(**({"model": embedding_model, "input": "A"} | fields))
        assert param is None or error_of(raised)["param"] == param

    def test_a_text_longer_than_the_context(self, client: openai.OpenAI, embedding_model: str) -> None:
        with pytest.raises(openai.BadRequestError) as raised:
            client.embeddings.create(model=embedding_model, input="mill " * 4 * CONTEXT_LENGTH)
        assert error_of(raised)["code"] == "context_length_exceeded"


def cosine(left: list[float], right: list[float]) -> float:
    """Of two vectors of length 1."""
    return sum(one * other for one, other in zip(left, right, strict=True))
