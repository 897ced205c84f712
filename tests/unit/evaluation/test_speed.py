"""What rates mean."""

from __future__ import annotations

import pytest

from workers.evaluation.speed import Answer, Prompts, rates


def test_rates_of_one_request() -> None:
    read = [Answer(sent=10.0, first=12.0, last=12.0, prompt_tokens=100, output_tokens=1)]
    found = rates(read, [Answer(sent=20.0, first=21.0, last=26.0, prompt_tokens=5, output_tokens=11)])
    assert found.time_to_first_token_seconds == 2.0
    assert found.prefill_tokens_per_second == pytest.approx(50)
    assert found.decode_tokens_per_second == pytest.approx(2), "the first token belongs to the prefill"
    assert found.joules_per_output_token is None


def test_rates_of_requests_that_overlap() -> None:
    read = [Answer(0.0, 1.0, 1.0, 100, 1), Answer(0.0, 2.0, 2.0, 100, 1)]
    found = rates(read, [Answer(3.0, 4.0, 8.0, 5, 21), Answer(3.0, 5.0, 9.0, 5, 31)], joules=104.0)
    assert (found.requests, found.prompt_tokens, found.output_tokens) == (2, 200, 52)
    assert found.time_to_first_token_seconds == 1.5
    assert found.prefill_tokens_per_second == pytest.approx(100)
    assert found.decode_tokens_per_second == pytest.approx(10)
    assert found.joules_per_output_token == pytest.approx(2)


def test_a_single_token_tells_no_rate() -> None:
    answer = [Answer(0.0, 1.0, 1.0, 100, 1)]
    assert rates(answer, answer).decode_tokens_per_second is None


def test_prompts_differ_from_their_beginning() -> None:
    prompts = Prompts("The miller carried the grain to the mill by the river. " * 20, 100)
    starts = [prompts.next()[:4] for _ in range(9)]
    assert len(set(starts)) == 9
