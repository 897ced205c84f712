"""What rates mean."""

from __future__ import annotations

import pytest

from workers.evaluation.speed import Answer, Prompts, rates


def test_rates_of_one_request() -> None:
    found = rates([Answer(sent=10.0, first=12.0, last=17.0, prompt_tokens=100, output_tokens=11)])
    assert found.time_to_first_token_seconds == 2.0
    assert found.prefill_tokens_per_second == pytest.approx(50)
    assert found.decode_tokens_per_second == pytest.approx(2), "the first token belongs to the prefill"


def test_rates_of_requests_that_overlap() -> None:
    found = rates([Answer(0.0, 1.0, 5.0, 100, 21), Answer(0.0, 2.0, 6.0, 100, 31)])
    assert (found.requests, found.prompt_tokens, found.output_tokens) == (2, 200, 52)
    assert found.time_to_first_token_seconds == 1.5
    assert found.prefill_tokens_per_second == pytest.approx(100)
    assert found.decode_tokens_per_second == pytest.approx(10)


def test_a_single_token_tells_no_rate() -> None:
    assert rates([Answer(0.0, 1.0, 1.0, 100, 1)]).decode_tokens_per_second is None


def test_prompts_differ_from_their_beginning() -> None:
    prompts = Prompts("The miller carried the grain to the mill by the river. " * 20, 100)
    starts = [prompts.next()[:4] for _ in range(9)]
    assert len(set(starts)) == 9
