"""The whole of OpenAI's contract, driven by its own client: the same tests for every engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import jsonschema
import openai
import pytest

from app.domain.artifacts import ArtifactKind
from app.domain.quantization.catalog import parse_method
from app.persistence.schema import migrate
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import TOOLS_TEMPLATE, tiny_llama, tiny_tokenizer
from tests.fakes.run import RecordingRun
from tests.fakes.serving import add_model, error_of, running_host
from workers.quantization.registry import load_method

# One artifact for each engine; the second of each has a chat template that knows of tools.
ENGINES = {"transformers": {"type": "none", "dtype": "bf16"}, "llama_cpp": {"type": "gguf", "quantization": "Q8_0"}}
CONTEXT_LENGTH = 1024
HELLO: Any = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = "The miller carried the grain."
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["town", "village"]},
        "parts": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["city", "size", "kind", "parts"],
    "additionalProperties": False,
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "forecast", "description": "Tells the weather", "parameters": PARAMETERS},
    },
    {
        "type": "function",
        "function": {"name": "stop", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    },
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    data = tmp_path_factory.mktemp("contract")
    settings = Settings(data_dir=data, serving_context_length=CONTEXT_LENGTH, serving_max_models=6)
    migrate(settings.database)
    database = Database(settings.database)
    for kind, template in (("plain", None), ("tools", TOOLS_TEMPLATE)):
        source = tiny_llama(
            data / kind, hidden_size=256, intermediate_size=512, chat_template=template, initializer_range=0.15
        )
        for engine, method in ENGINES.items():
            folder = settings.artifacts_folder / f"{engine}-{kind}"
            folder.mkdir(parents=True)
            spec, params = parse_method(method)
            checkpoint = inspect_checkpoint(source)
            load_method(spec.name).quantize(checkpoint, folder, params, RecordingRun(checkpoint, settings.cache_folder))
            add_model(database, f"{kind}:{engine}", ArtifactKind.QUANTIZED, spec.output, folder)
    source = tiny_embedding_model(data / "embedding")
    for engine, method in ENGINES.items():
        folder = settings.artifacts_folder / f"{engine}-embedding"
        folder.mkdir(parents=True)
        checkpoint = inspect_checkpoint(source)
        spec, params = parse_method(method)
        load_method(spec.name).quantize(checkpoint, folder, params, RecordingRun(checkpoint, settings.cache_folder))
        add_model(database, f"embedding:{engine}", ArtifactKind.QUANTIZED, spec.output, folder)
    database.close()
    return settings


def tiny_embedding_model(folder: Path) -> Path:
    """As sentence-transformers saves one: a model, and how its vectors are pooled."""
    tiny_llama(folder, hidden_size=256, intermediate_size=512, initializer_range=0.15)
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    listed = [
        {"idx": int(number), "name": number, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, path, kind in modules
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 256, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="module")
def host(settings: Settings) -> Iterator[str]:
    with running_host(settings) as url:
        yield url


@pytest.fixture(scope="module")
def client(host: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{host}/v1", api_key="unused", max_retries=0, timeout=120)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def model(engine: str) -> str:
    return f"plain:{engine}"


@pytest.fixture(scope="module")
def calling_model(engine: str) -> str:
    return f"tools:{engine}"


def never_ending() -> dict[str, int]:
    """A bias against every end, and against parts of characters, which have no text of their own."""
    tokenizer = tiny_tokenizer()
    parts = [token for token in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([token])]
    return {str(token): -100 for token in [*tokenizer.all_special_ids, *parts]}


def ask(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": model, "messages": HELLO, "max_tokens": 12, **fields})


def complete(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    given = {"model": model, "prompt": PROMPT, "max_tokens": 12, "logit_bias": never_ending()}
    return client.completions.create(**(given | fields))


def refused(client: openai.OpenAI, model: str, make: Any = ask, **fields: Any) -> dict[str, Any]:
    with pytest.raises(openai.BadRequestError) as raised:
        make(client, model, **fields)
    assert error_of(raised)["type"] == "invalid_request_error"
    return error_of(raised)


class TestSampling:
    def test_the_same_seed_gives_the_same_text(self, client: openai.OpenAI, model: str) -> None:
        def texts(seed: int) -> list[str]:
            answer = ask(client, model, temperature=1, seed=seed, n=2, logit_bias=never_ending())
            return [choice.message.content for choice in answer.choices]

        first = texts(7)
        ask(client, model, temperature=1, messages=[{"role": "user", "content": "Another"}])
        assert texts(7) == first
        assert first[0] != first[1]
        assert texts(8) != first

    def test_seeds_are_any_integers(self, client: openai.OpenAI, model: str) -> None:
        for seed in (-3, 0, 2**32 - 1, 2**62):
            texts = {complete(client, model, temperature=1, seed=seed).choices[0].text for _ in range(2)}
            assert len(texts) == 1

    def test_temperature_zero_is_greedy(self, client: openai.OpenAI, model: str) -> None:
        assert len({complete(client, model, temperature=0).choices[0].text for _ in range(3)}) == 1

    def test_a_small_nucleus_is_greedy(self, client: openai.OpenAI, model: str) -> None:
        best = complete(client, model, temperature=0).choices[0].text
        assert complete(client, model, temperature=1, top_p=1e-6).choices[0].text == best

    def test_bias_forces_and_forbids(self, client: openai.OpenAI, model: str) -> None:
        token = tiny_tokenizer().encode(" the")[0]
        text = complete(client, model, temperature=0, logit_bias={str(token): 100}, max_tokens=3).choices[0].text
        assert text == tiny_tokenizer().decode([token] * 3)
        assert refused(client, model, logit_bias={"99999999": 1})["param"] == "logit_bias"

    @pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
    def test_penalties_make_repetition_rarer(self, client: openai.OpenAI, model: str, penalty: str) -> None:
        def different(value: float) -> int:
            # A bias as strong as the penalties, so that without one a few tokens are all there is.
            few = {str(token): 5 for token in range(50, 60)}
            answer = complete(client, model, temperature=0, max_tokens=40, logit_bias=few, extra_body={penalty: value})
            return len(set(tiny_tokenizer().encode(answer.choices[0].text)))

        assert different(2.0) > different(-2.0)

    @pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
    def test_limits(self, client: openai.OpenAI, model: str, limit: str) -> None:
        answer = client.chat.completions.create(model=model, messages=HELLO, logit_bias=never_ending(), **{limit: 5})  # type: ignore[call-overload]
        assert answer.usage.completion_tokens == 5
        assert answer.choices[0].finish_reason == "length"

    def test_extra_sampling(self, client: openai.OpenAI, model: str) -> None:
        best = complete(client, model, temperature=0).choices[0].text
        for extra in ({"top_k": 1}, {"min_p": 1.0}):
            assert complete(client, model, temperature=1, extra_body=extra).choices[0].text == best


class TestStop:
    def test_generation_ends_before_a_stop_string(self, client: openai.OpenAI, model: str) -> None:
        full = complete(client, model, temperature=0, logit_bias=never_ending(), max_tokens=24).choices[0].text
        stop = full[len(full) // 2 :][:3]
        for given in (stop, [stop, "never in there"]):
            cut = complete(client, model, temperature=0, logit_bias=never_ending(), max_tokens=24, stop=given)
            assert cut.choices[0].text == full[: full.index(stop)]
            assert cut.choices[0].finish_reason == "stop"
        streamed = complete(
            client, model, temperature=0, logit_bias=never_ending(), max_tokens=24, stop=stop, stream=True
        )
        assert "".join(chunk.choices[0].text for chunk in streamed) == full[: full.index(stop)]


class TestChoices:
    def test_usage_counts_every_choice(self, client: openai.OpenAI, model: str) -> None:
        one = ask(client, model, logit_bias=never_ending(), max_tokens=4)
        many = ask(client, model, logit_bias=never_ending(), max_tokens=4, n=3, temperature=1)
        assert [choice.index for choice in many.choices] == [0, 1, 2]
        assert many.usage.completion_tokens == 12
        assert many.usage.prompt_tokens == one.usage.prompt_tokens
        assert many.usage.total_tokens == many.usage.prompt_tokens + 12

    def test_usage_is_the_tokenizers(self, client: openai.OpenAI, model: str) -> None:
        tokenizer = tiny_tokenizer()
        templated = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True, return_dict=True)
        answer = ask(client, model, max_tokens=3, logit_bias=never_ending())
        assert answer.usage.prompt_tokens == len(templated["input_ids"])
        text = complete(client, model, prompt=[PROMPT, "A"], max_tokens=2, n=2, logit_bias=never_ending())
        assert text.usage.prompt_tokens == len(tokenizer.encode(PROMPT)) + len(tokenizer.encode("A"))
        assert text.usage.completion_tokens == 8

    @pytest.mark.parametrize("seed", [None, 5])
    def test_choices_stream_side_by_side(self, client: openai.OpenAI, model: str, seed: int | None) -> None:
        chunks = list(
            ask(
                client,
                model,
                n=2,
                temperature=1,
                seed=seed,
                logit_bias=never_ending(),
                max_tokens=6,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert len({chunk.id for chunk in chunks}) == 1
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        ends = {
            choice.index: choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason
        }
        assert ends == {0: "length", 1: "length"}
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 12
        assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)

    def test_a_stream_says_what_the_whole_answer_says(self, client: openai.OpenAI, model: str) -> None:
        fields: Any = {"temperature": 0, "max_tokens": 24, "logit_bias": never_ending()}
        whole = ask(client, model, **fields)
        chunks = list(ask(client, model, **fields, stream=True, stream_options={"include_usage": True}))
        assert chunks[0].choices[0].delta.role == "assistant"
        pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert all(chunk.usage is None for chunk in ask(client, model, **fields, stream=True))

    def test_completions_stream_with_usage(self, client: openai.OpenAI, model: str) -> None:
        fields: Any = {"prompt": [PROMPT, "A"], "n": 2, "temperature": 0, "logit_bias": never_ending(), "max_tokens": 5}
        whole = complete(client, model, **fields)
        chunks = list(complete(client, model, **fields, stream=True, stream_options={"include_usage": True}))
        texts = ["", "", "", ""]
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert texts == [choice.text for choice in whole.choices]
        assert chunks[-1].usage.model_dump() | {"prompt_tokens_details": None} == whole.usage.model_dump() | {
            "prompt_tokens_details": None
        }
        assert all(chunk.usage is None for chunk in complete(client, model, **fields, stream=True))


class TestPrompts:
    def test_lists_of_texts_and_of_tokens(self, client: openai.OpenAI, model: str) -> None:
        tokenizer = tiny_tokenizer()
        prompts = [PROMPT, "In 1783 two"]
        # With a seed, choices do not share a batch, whose rounding errors could tip a close decision.
        fields: Any = {"temperature": 0, "seed": 1}
        single = [complete(client, model, prompt=prompt, **fields).choices[0].text for prompt in prompts]
        both = complete(client, model, prompt=prompts, **fields)
        assert [choice.text for choice in both.choices] == single
        tokens = complete(client, model, prompt=[tokenizer.encode(prompt) for prompt in prompts], **fields)
        assert [choice.text for choice in tokens.choices] == single
        assert refused(client, model, complete, prompt=[99999999])["type"] == "invalid_request_error"

    @pytest.mark.parametrize("stream", [False, True])
    def test_echo(self, client: openai.OpenAI, model: str, stream: bool) -> None:
        plain = complete(client, model, temperature=0).choices[0].text
        for prompt in (PROMPT, tiny_tokenizer().encode(PROMPT)):
            answer = complete(client, model, prompt=prompt, temperature=0, echo=True, stream=stream)
            chunks = answer if stream else [answer]
            assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == PROMPT + plain

    def test_echo_with_logprobs(self, client: openai.OpenAI, engine: str, model: str) -> None:
        if engine == "llama_cpp":
            error = refused(client, model, complete, echo=True, logprobs=1)
            assert (error["param"], error["code"]) == ("echo", "unsupported_field")
            return
        tokens = tiny_tokenizer().encode(PROMPT)
        answer = complete(client, model, echo=True, logprobs=2, max_tokens=2, temperature=0, logit_bias=never_ending())
        given = answer.choices[0].logprobs
        assert given.tokens[: len(tokens)] == [tiny_tokenizer().decode([token]) for token in tokens]
        assert len(given.tokens) == len(given.token_logprobs) == len(given.text_offset) == len(tokens) + 2
        assert given.token_logprobs[0] is None
        assert all(logprob < 0 for logprob in given.token_logprobs[1:])
        assert given.top_logprobs[0] is None
        scored = complete(client, model, echo=True, logprobs=2, max_tokens=0)
        assert scored.choices[0].text == PROMPT
        assert scored.usage.completion_tokens == 0
        # What follows a longer prompt was said of the shorter one's next token.
        longer = complete(client, model, prompt=answer.choices[0].text, echo=True, logprobs=2, max_tokens=0)
        assert longer.choices[0].logprobs.token_logprobs[: len(tokens)] == pytest.approx(
            scored.choices[0].logprobs.token_logprobs, abs=0.05
        )

    @pytest.mark.parametrize("fields", [{"best_of": 3}, {"suffix": "end"}])
    def test_what_is_not_honoured_is_refused(self, client: openai.OpenAI, model: str, fields: dict[str, Any]) -> None:
        error = refused(client, model, complete, **fields)
        assert (error["param"], error["code"]) == (next(iter(fields)), "unsupported_field")


class TestLogprobs:
    @pytest.mark.parametrize("top", [None, 0, 3])
    def test_of_chat(self, client: openai.OpenAI, model: str, top: int | None) -> None:
        fields: Any = {"logprobs": True, "temperature": 0, "max_tokens": 4, "logit_bias": never_ending()}
        whole = ask(client, model, **fields, top_logprobs=top).choices[0].logprobs.content
        assert len(whole) == 4
        for token in whole:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == (top or 0)
            assert bytes(token.bytes).decode(errors="replace") == token.token
        chunks = ask(client, model, **fields, top_logprobs=top, stream=True)
        streamed = [
            token
            for chunk in chunks
            for choice in chunk.choices
            for token in (choice.logprobs.content if choice.logprobs else [])
        ]
        assert [token.token for token in streamed] == [token.token for token in whole]
        assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in whole], abs=0.02)

    @pytest.mark.parametrize("top", [0, 2])
    @pytest.mark.parametrize("stream", [False, True])
    def test_of_completions(self, client: openai.OpenAI, model: str, top: int, stream: bool) -> None:
        answer = complete(
            client, model, logprobs=top, temperature=0, max_tokens=4, stream=stream, logit_bias=never_ending()
        )
        choices = [choice for chunk in (answer if stream else [answer]) for choice in chunk.choices]
        given = [choice.logprobs for choice in choices if choice.logprobs]
        tokens = [token for one in given for token in one.tokens]
        assert "".join(tokens) == "".join(choice.text for choice in choices)
        offsets = [offset for one in given for offset in one.text_offset]
        assert offsets == [len("".join(tokens[:index])) for index in range(4)]
        if top == 0:
            assert [one.top_logprobs for one in given] == [None] * len(given)
            return
        best = [entry for one in given for entry in one.top_logprobs]
        assert [len(entry) for entry in best] == [2] * 4
        assert [max(entry.values()) for entry in best] >= [logprob for one in given for logprob in one.token_logprobs]


class TestStructure:
    @pytest.mark.parametrize("temperature", [0, 1])
    def test_a_schema_is_followed(self, client: openai.OpenAI, model: str, temperature: float) -> None:
        format_ = {"type": "json_schema", "json_schema": {"name": "place", "schema": ANSWER_SCHEMA, "strict": True}}
        answer = ask(
            client, model, n=3, temperature=temperature, seed=3, response_format=format_, max_tokens=300, top_p=0.9
        )
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content), ANSWER_SCHEMA)

    def test_a_stream_follows_it_too(self, client: openai.OpenAI, model: str) -> None:
        format_ = {"type": "json_schema", "json_schema": {"name": "place", "schema": ANSWER_SCHEMA}}
        chunks = ask(client, model, response_format=format_, max_tokens=300, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        jsonschema.validate(json.loads(text), ANSWER_SCHEMA)

    def test_any_object(self, client: openai.OpenAI, model: str) -> None:
        # Random weights would write without an end: what ends an object is made likelier.
        ends = {str(tiny_tokenizer().encode(text)[0]): 8 for text in ('"', "}", ":")}
        answer = ask(
            client,
            model,
            response_format={"type": "json_object"},
            max_tokens=400,
            logit_bias=ends,
            temperature=1,
            seed=1,
        )
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(json.loads(answer.choices[0].message.content), dict)

    @pytest.mark.parametrize(
        "schema", [{"type": "nonsense"}, {"type": "array", "uniqueItems": True}, {"not": {"type": "string"}}]
    )
    def test_a_schema_that_cannot_be_followed(self, client: openai.OpenAI, model: str, schema: dict[str, Any]) -> None:
        format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert refused(client, model, response_format=format_)["param"] == "response_format"


class TestTools:
    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "forecast"}}])
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_call_that_must_come(self, client: openai.OpenAI, calling_model: str, choice: Any, stream: bool) -> None:
        calls, reason = called(client, calling_model, stream, tool_choice=choice, parallel_tool_calls=False)
        assert reason == "tool_calls"
        ((name, arguments),) = calls
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
        jsonschema.validate(json.loads(arguments), schemas[name])
        assert name == "forecast" or choice == "required"

    @pytest.mark.parametrize("choice", [None, "auto", "none"])
    def test_a_call_that_may_come(self, client: openai.OpenAI, calling_model: str, choice: Any) -> None:
        given = {} if choice is None else {"tool_choice": choice}
        answer = ask(client, calling_model, tools=TOOLS, temperature=0, logit_bias=never_ending(), **given)
        assert answer.choices[0].message.content  # a random model calls nothing by itself
        assert answer.choices[0].message.tool_calls is None

    def test_tools_are_a_part_of_the_prompt(self, client: openai.OpenAI, calling_model: str) -> None:
        without = ask(client, calling_model, max_tokens=1).usage.prompt_tokens
        assert ask(client, calling_model, max_tokens=1, tools=TOOLS).usage.prompt_tokens > without + 20

    def test_calls_and_results_in_the_history(self, client: openai.OpenAI, calling_model: str) -> None:
        call = {"id": "call_1", "type": "function", "function": {"name": "forecast", "arguments": '{"city": "Rome"}'}}
        history: Any = [
            *HELLO,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "It is sunny in Rome."},
            *HELLO,
        ]
        answer = ask(client, calling_model, messages=history, tools=TOOLS)
        shorter = ask(client, calling_model, messages=[*history[:2], *HELLO], tools=TOOLS)
        assert answer.usage.prompt_tokens > shorter.usage.prompt_tokens + 5

    def test_a_template_without_tools(self, client: openai.OpenAI, model: str) -> None:
        error = refused(client, model, tools=TOOLS)
        assert (error["param"], error["code"]) == ("tools", "unsupported_field")
        history = [*HELLO, {"role": "tool", "tool_call_id": "x", "content": "sunny"}]
        assert refused(client, model, messages=history)["param"] == "messages"


def called(client: openai.OpenAI, model: str, stream: bool, **fields: Any) -> tuple[list[tuple[str, str]], str | None]:
    """Names and arguments, and how the answer ended."""
    answer = ask(client, model, tools=TOOLS, max_tokens=200, temperature=1, seed=2, stream=stream, **fields)
    if not stream:
        (choice,) = answer.choices
        return [
            (call.function.name, call.function.arguments) for call in choice.message.tool_calls
        ], choice.finish_reason
    calls: dict[int, list[str]] = {}
    reason = None
    for chunk in answer:
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(part.index, ["", ""])
                call[0] += part.function.name or ""
                call[1] += part.function.arguments or ""
    return [(name, arguments) for name, arguments in calls.values()], reason


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"max_tokens": "many"}, "max_tokens"),
            ({"messages": [{"role": "user", "content": 5}]}, "messages"),
            ({"temperature": -1}, "temperature"),
            ({"unheard_of": 1}, "unheard_of"),
            ({"mirostat_tau": "x"}, "mirostat_tau"),
            ({"store": True}, "store"),
            ({"functions": [{"name": "f"}]}, "functions"),
        ],
    )
    def test_a_wrong_field(self, client: openai.OpenAI, model: str, fields: dict[str, Any], param: str) -> None:
        assert refused(client, model, extra_body=fields)["param"] == param

    def test_a_prompt_longer_than_the_context(self, client: openai.OpenAI, model: str) -> None:
        long = "mill " * CONTEXT_LENGTH
        assert refused(client, model, complete, prompt=long)["code"] == "context_length_exceeded"
        messages = [{"role": "user", "content": long}]
        assert refused(client, model, messages=messages)["code"] == "context_length_exceeded"
        assert refused(client, model, messages=messages, stream=True, n=2)["code"] == "context_length_exceeded"


def test_a_client_that_goes_away_stops_its_generation(client: openai.OpenAI, host: str, model: str) -> None:
    stream = complete(client, model, max_tokens=400, n=2, stream=True, logit_bias=never_ending())
    next(iter(stream))
    stream.close()
    until_idle(host, model)


def until_idle(host: str, model: str) -> None:
    import time

    deadline = time.monotonic() + 20
    while True:
        found = {view["model"]: view["in_flight"] for view in httpx.get(f"{host}/v1/deployments").json()["data"]}
        if found[model] == 0:
            return
        assert time.monotonic() < deadline, "a request goes on although its client is gone"
        time.sleep(0.02)


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

    def test_vectors(self, client: openai.OpenAI, engine: str) -> None:
        model = f"embedding:{engine}"
        # The client asks for base64 by itself, and turns it into numbers.
        answer = client.embeddings.create(model=model, input=self.TEXTS)
        assert [item.index for item in answer.data] == [0, 1, 2]
        assert answer.model == model
        tokens = [tiny_tokenizer().encode(text) for text in self.TEXTS]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))
        for item in answer.data:
            assert len(item.embedding) == 256
            assert sum(value * value for value in item.embedding) == pytest.approx(1, abs=1e-3)
        for given in (self.TEXTS[1], tokens[1]):
            alone = client.embeddings.create(model=model, input=given, encoding_format="float")
            assert cosine(alone.data[0].embedding, answer.data[1].embedding) > 0.999

    def test_engines_agree(self, client: openai.OpenAI) -> None:
        first, second = (
            client.embeddings.create(model=f"embedding:{engine}", input=self.TEXTS).data for engine in ENGINES
        )
        for left, right in zip(first, second, strict=True):
            assert cosine(left.embedding, right.embedding) > 0.98

    def test_a_model_of_the_wrong_kind(self, client: openai.OpenAI, engine: str, model: str) -> None:
        with pytest.raises(openai.BadRequestError) as raised:
            client.embeddings.create(model=model, input="A")
        assert error_of(raised)["param"] == "model"
        # llama.cpp lets a decoder do both.
        for make in (ask, complete) if engine == "transformers" else ():
            assert refused(client, f"embedding:{engine}", make, logit_bias={})["param"] == "model"

    @pytest.mark.parametrize(
        ("fields", "param"),
        [({"dimensions": 64}, "dimensions"), ({"input": ""}, "input"), ({"input": [[99999999]]}, None)],
    )
    def test_refusals(self, client: openai.OpenAI, engine: str, fields: dict[str, Any], param: str | None) -> None:
        with pytest.raises(openai.BadRequestError) as raised:
            client.embeddings.create(**({"model": f"embedding:{engine}", "input": "A"} | fields))
        assert param is None or error_of(raised)["param"] == param

    def test_a_text_longer_than_the_context(self, client: openai.OpenAI, engine: str) -> None:
        with pytest.raises(openai.BadRequestError) as raised:
            client.embeddings.create(model=f"embedding:{engine}", input="mill " * 4 * CONTEXT_LENGTH)
        assert error_of(raised)["code"] == "context_length_exceeded"


def cosine(left: list[float], right: list[float]) -> float:
    """Of two vectors of length 1."""
    return sum(one * other for one, other in zip(left, right, strict=True))
