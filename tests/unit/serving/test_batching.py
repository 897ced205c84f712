"""The transformers engine's parts that need no model: text and sampling."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.domain.errors import EngineFailed, InvalidParameter
from workers.serving.batching.answers import ChatAnswer, Usage
from workers.serving.batching.application import _events
from workers.serving.batching.generator import Choice, Piece
from workers.serving.batching.sampling import PerRequestSampler, SamplingSettings, SamplingState, choose
from workers.serving.batching.text import TextStream
from workers.serving.merging import in_turn, merged


def decode(tokens: Sequence[int]) -> str:
    """Each token is a byte, so that a character may take several."""
    return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize("seed", range(20))
def test_pieces_add_up_to_the_text(seed: int) -> None:
    text = "Grüße aus Zürich 日本 🌾 – ja"
    tokens = list(text.encode())
    stream = TextStream(decode, ["not there", "ja, but no"])
    chooser = random.Random(seed)
    pieces = []
    while tokens:
        count = chooser.randint(1, 5)
        pieces.append(stream.push(tokens[:count]))
        assert "\ufffd" not in pieces[-1]
        tokens = tokens[count:]
    assert "".join(pieces) + stream.finish() == text


@pytest.mark.parametrize(
    ("stops", "expected"),
    [(["stop"], "one two "), (["stop", "two"], "one "), (["o three"], "one two stop tw"), (["e"], "on")],
)
def test_text_ends_before_the_first_stop_string(stops: list[str], expected: str) -> None:
    text = "one two stop two three"
    if stops == ["o three"]:
        expected = "one two stop tw"
    stream = TextStream(decode, stops)
    shown = ""
    for byte in text.encode():
        shown += stream.push([byte])
        assert expected.startswith(shown)
        if stream.stopped:
            break
    assert shown + stream.finish() == expected
    assert stream.stopped


def test_what_only_looked_like_a_stop_string_is_shown_at_the_end() -> None:
    stream = TextStream(decode, ["stopping"])
    assert stream.push(list(b"please stop")) == "please "
    assert stream.finish() == "stop"
    assert not stream.stopped


def test_an_incomplete_character_at_the_end_is_not_lost() -> None:
    stream = TextStream(decode, [])
    assert stream.push(list("é".encode())[:1]) == ""
    assert stream.finish() == "\ufffd"


def draws(settings: SamplingSettings, scores: list[float], count: int = 4000) -> Counter[int]:
    states = [SamplingState(settings)] * count
    return Counter(choose(torch.tensor([scores]).repeat(count, 1), states).tolist())


def test_temperature_zero_takes_the_best() -> None:
    assert draws(SamplingSettings(temperature=0), [0.0, 3.0, 1.0]) == {1: 4000}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    scores = [1.0, 0.0, -1.0, float("-inf")]
    found = draws(SamplingSettings(temperature=temperature, seed=1), scores)
    expected = torch.softmax(torch.tensor(scores) / temperature, dim=-1)
    for token, share in enumerate(expected.tolist()):
        assert found[token] / 4000 == pytest.approx(share, abs=0.03)
    assert found[3] == 0


def test_top_k_and_top_p_cut_the_rest() -> None:
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).tolist()
    assert set(draws(SamplingSettings(top_k=2), scores)) == {0, 1}
    assert set(draws(SamplingSettings(top_p=0.4), scores)) == {0}
    assert set(draws(SamplingSettings(top_p=0.7), scores)) == {0, 1}
    assert set(draws(SamplingSettings(top_p=0.85), scores)) == {0, 1, 2}


def test_a_nucleus_wider_than_the_candidates_is_found() -> None:
    """As when a model knows nothing: all of a large vocabulary is about as likely."""
    found = draws(SamplingSettings(top_p=0.99, seed=1), [0.0] * 2000, count=8000)
    assert len(found) > 1500


def test_penalties_and_bias_move_the_choice() -> None:
    state = SamplingState(SamplingSettings(temperature=0, presence_penalty=1.0, frequency_penalty=0.5))
    scores = torch.tensor([[2.0, 1.0, 0.8]])
    chosen = []
    for _ in range(4):
        token = int(choose(scores, [state])[0])
        state.record(token, scores[0])
        chosen.append(token)
    # 2.0 falls to 0.5 after one use; 1.0 to -0.5; 0.8 to -0.7; then 0.5 is the best again.
    assert chosen == [0, 1, 2, 0]
    biased = SamplingState(SamplingSettings(temperature=0, logit_bias={2: 5.0}))
    assert int(choose(scores, [biased])[0]) == 2


def test_a_seed_repeats_itself_whatever_shares_the_batch() -> None:
    scores = torch.zeros(3, 50)
    alone = [int(choose(scores[:1], [state])[0]) for state in [SamplingState(SamplingSettings(seed=4))] * 5]
    state, other = SamplingState(SamplingSettings(seed=4)), SamplingState(SamplingSettings(seed=9))
    shared = [int(choose(scores, [other, state, other])[1]) for _ in range(5)]
    assert shared == alone


def test_rows_that_belong_to_no_request_are_left_alone() -> None:
    sampler = PerRequestSampler()
    sampler.prepare_tensor_args([])
    forced = sampler(torch.zeros(2, 5), torch.zeros(2))
    assert forced.shape == (2, 5)


def test_each_request_is_sampled_as_it_asked() -> None:
    sampler = PerRequestSampler()
    best, biased = SamplingSettings(temperature=0), SamplingSettings(temperature=0, logit_bias={2: 5.0})
    sampler.states |= {"best": SamplingState(best), "biased": SamplingState(biased)}
    scores = torch.tensor([[2.0, 1.0, 0.8], [2.0, 1.0, 0.8]])

    def asked(*names: str) -> list[int]:
        sampler.prepare_tensor_args([SimpleNamespace(state=SimpleNamespace(request_id=name)) for name in names])
        return sampler(scores.clone(), torch.zeros(2)).argmax(dim=-1).tolist()

    assert asked("best", "best") == [0, 0]
    assert asked("best", "biased") == [0, 2]
    assert asked("biased", "gone") == [2, 0]


def test_logprobs_are_those_of_the_model() -> None:
    state = SamplingState(SamplingSettings(temperature=2.0, top_logprobs=2))
    scores = torch.tensor([1.0, 2.0, 0.0])
    state.record(0, scores)
    expected = torch.log_softmax(scores, dim=-1).tolist()
    (entry,) = state.logprobs
    assert entry.logprob == pytest.approx(expected[0])
    assert [token for token, _ in entry.top] == [1, 0]


def test_one_streams_error_ends_all() -> None:
    closed = []

    async def endless() -> AsyncGenerator[int, None]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def failing() -> AsyncGenerator[int, None]:
        yield 2
        raise InvalidParameter("no")

    async def read() -> list[tuple[int, int]]:
        return [item async for item in merged([endless(), failing()])]

    with pytest.raises(InvalidParameter):
        asyncio.run(read())
    assert closed == [True]


def test_min_p_cuts_what_is_much_less_likely_than_the_best() -> None:
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).tolist()
    assert set(draws(SamplingSettings(min_p=0.5), scores)) == {0, 1}
    assert set(draws(SamplingSettings(min_p=1.0), scores)) == {0}


def test_a_repetition_penalty_counts_the_prompt_too() -> None:
    scores = torch.tensor([[2.0, 1.5, -1.0]])
    state = SamplingState(SamplingSettings(temperature=0, repetition_penalty=2.0), prompt=[0])
    assert int(choose(scores, [state])[0]) == 1
    adjusted = torch.tensor([2.0, 1.5, -1.0])
    SamplingState(SamplingSettings(repetition_penalty=2.0), prompt=[0, 2]).adjust(adjusted)
    assert adjusted.tolist() == [1.0, 1.5, -2.0]


def test_streams_in_turn_do_not_overlap() -> None:
    begun = []

    async def numbers(name: int) -> AsyncGenerator[int, None]:
        begun.append(name)
        for number in range(2):
            yield number

    async def read() -> list[tuple[int, int]]:
        found = []
        async for index, number in in_turn([numbers(0), numbers(1)]):
            found.append((index, number))
            assert begun == list(range(index + 1))
        return found

    assert asyncio.run(read()) == [(0, 0), (0, 1), (1, 0), (1, 1)]


class NoTokens:
    def token_text(self, token: int) -> str:
        return ""

    def token_bytes(self, token: int) -> bytes:
        return b""


def test_a_stream_opens_with_its_first_token() -> None:
    """The host has a deadline for the first token, and measures it."""

    async def scenario() -> None:
        generated = asyncio.Event()

        async def pieces() -> AsyncGenerator[tuple[int, Piece], None]:
            await generated.wait()
            for index in (1, 0):
                yield index, Piece(text="a", tokens=1, finish_reason="stop")

        answer = ChatAnswer("m", NoTokens(), top_logprobs=None)
        events = _events(pieces(), answer, Usage(1), 2, include_usage=False)
        first = asyncio.ensure_future(anext(events))
        done, _ = await asyncio.wait({first}, timeout=0.05)
        assert not done
        generated.set()
        found = [await first, *[event async for event in events]]
        assert [b"assistant" in event for event in found] == [True, True, False, False, False]

    asyncio.run(scenario())


class Grammar:
    """Stands for a constraint: `length` is where the grammar came to its end, if it did."""

    failure = None

    def __init__(self, length: int | None) -> None:
        self.length = length


def ended(length: int | None, *tokens: int, stops: Sequence[str] = (), constrained: bool = True) -> Piece | None:
    """What becomes of these tokens, of which 9 is the end and each other its own digit."""
    constraint: Any = Grammar(length) if constrained else None
    state = SamplingState(SamplingSettings(), constraint=constraint)
    text = TextStream(lambda given: "".join(str(token) for token in given if token != 9), stops)
    output: Any = SimpleNamespace(
        status=None, error=None, generated_tokens=list(tokens), is_finished=lambda: tokens[-1] == 9 or len(tokens) == 4
    )
    return Choice(text, state, frozenset({9})).advance(output)


def test_an_answer_that_ends_before_its_grammar_is_none() -> None:
    with pytest.raises(EngineFailed, match="before it followed its schema"):
        ended(None, 1, 2, 9)


@pytest.mark.parametrize(
    ("length", "tokens", "given", "reason"),
    [
        (3, [1, 2, 9], {}, "stop"),
        (2, [1, 2], {}, "stop"),
        (None, [1, 2, 3, 4], {}, "length"),
        (None, [1, 2, 3], {"stops": ["2"]}, "stop"),
        (None, [1, 2, 9], {"constrained": False}, "stop"),
    ],
)
def test_answers_that_end_with_their_grammar_or_are_cut_off(
    length: int | None, tokens: list[int], given: dict[str, Any], reason: str
) -> None:
    piece = ended(length, *tokens, **given)
    assert piece is not None
    assert piece.finish_reason == reason
