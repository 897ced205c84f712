"""Expressions over tensor names."""

from __future__ import annotations

import pytest

from app.domain.errors import InvalidParameter
from workers.quantization.gguf.overrides import match_tensors

NAMES = ["token_embd.weight", "blk.0.ffn_down.weight", "blk.0.attn_v.weight", "blk.10.attn_v.weight"]


def test_the_first_expression_found_in_a_name_counts() -> None:
    chosen = match_tensors({r"blk\.0\.attn": "Q8_0", "attn_v": "Q6_K"}, NAMES)
    assert chosen == {"blk.0.attn_v.weight": "Q8_0", "blk.10.attn_v.weight": "Q6_K"}


def test_an_expression_without_a_match_is_refused_with_examples() -> None:
    with pytest.raises(InvalidParameter, match=r"'attn_x' is found in no weight's name.*token_embd\.weight"):
        match_tensors({"attn_v": "Q8_0", "attn_x": "Q8_0"}, NAMES)


def test_a_type_that_would_end_the_process_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"token_embd\.weight cannot be IQ1_S"):
        match_tensors({".*": "IQ1_S"}, NAMES)
