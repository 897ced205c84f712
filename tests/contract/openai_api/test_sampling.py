"""How tokens are chosen, and when generation ends. The same for every engine."""

from __future__ import annotations

import time

import httpx
import openai
import pytest

from tests.fakes.checkpoints import tiny_tokenizer
from tests.fakes.openai_requests import (
    HELLO,
    ask,
    complete,
    never_ending,
    refused,
)


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
        best = complete(client, model, temperature=0, logprobs=1).choices[0].logprobs
        given = complete(client, model, temperature=1, top_p=1e-6, logprobs=1).choices[0].logprobs
        tokens = list(zip(best.tokens, given.tokens, strict=True))
        differs = next((index for index, (one, other) in enumerate(tokens) if one != other), None)
        # Scores of 16 bits may be the same for two tokens: then either is the best.
        if differs is not None:
            assert given.token_logprobs[differs] == pytest.approx(best.token_logprobs[differs], abs=1e-4)

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


def test_a_client_that_goes_away_stops_its_generation(client: openai.OpenAI, host: str, model: str) -> None:
    stream = complete(client, model, max_tokens=400, n=2, stream=True, logit_bias=never_ending())
    next(iter(stream))
    stream.close()
    until_idle(host, model)


def until_idle(host: str, model: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        found = {view["model"]: view["in_flight"] for view in httpx.get(f"{host}/v1/deployments").json()["data"]}
        if found[model] == 0:
            return
        assert time.monotonic() < deadline, "a request goes on although its client is gone"
        time.sleep(0.02)
