"""Durations and options as clients may give them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.serving import FOREVER, CreateDeployment, DeploymentOptions, parse_keep_alive


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(0, 0), (1.5, 1.5), ("30", 30), ("10m", 600), ("1h30m", 5400), ("500ms", 0.5), (-1, FOREVER), ("-1m", FOREVER)],
)
def test_durations(given: Any, seconds: float) -> None:
    assert parse_keep_alive(given) == seconds


@pytest.mark.parametrize("given", ["", "soon", "10 minutes", "5x", True, None, [], {}])
def test_what_is_no_duration_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="no duration"):
        parse_keep_alive(given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"context_length": 8}, "64"),
        ({"speed": 1}, "speed"),
        ({"speculation": {"type": "draft"}}, "draft_model"),
        ({"speculation": {"type": "ngram", "draft_model": "x"}}, "draft_model"),
        ({"engine": "remote"}, "needs `remote`"),
        ({"engine": "vllm", "remote": {"server": "s", "model": "m"}}, "not 'vllm'"),
        ({"keep_alive": "soon"}, "no duration"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DeploymentOptions(**given)


def test_a_request_is_a_model_with_options() -> None:
    wanted = CreateDeployment.model_validate({"model": "org/m", "slots": 2, "keep_alive": "1m"})
    assert wanted.options == DeploymentOptions(slots=2, keep_alive=60)
    assert wanted.wait
