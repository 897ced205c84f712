"""The converter's own arithmetic."""

from __future__ import annotations

import pytest
import torch

from app.domain.errors import UnsupportedArchitecture
from workers.quantization.gguf.converter import interleave_rotary_halves
from workers.quantization.gguf.pretokenizer import LLAMA3_PATTERN, llama_cpp_name


def test_rotary_halves_are_interleaved_within_each_head() -> None:
    weight = torch.arange(8)[:, None].expand(8, 3)  # two heads of four rows
    assert interleave_rotary_halves(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_interleaving_keeps_the_shape_of_a_bias() -> None:
    assert interleave_rotary_halves(torch.arange(4), 1).tolist() == [0, 2, 1, 3]


def test_rotating_pairs_after_interleaving_equals_rotating_halves_before() -> None:
    """What Hugging Face computes on halves, llama.cpp computes on neighbours."""
    vector, angle = torch.randn(4), 0.7
    cos, sin = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
    low, high = vector[:2], vector[2:]
    halves = torch.cat([low * cos - high * sin, high * cos + low * sin])
    pairs = interleave_rotary_halves(vector, 1).reshape(2, 2)
    rotated = torch.stack([pairs[:, 0] * cos - pairs[:, 1] * sin, pairs[:, 1] * cos + pairs[:, 0] * sin], dim=1)
    assert torch.allclose(interleave_rotary_halves(halves, 1), rotated.flatten())


def _split(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sequence(*steps: dict[str, object], ignore_merges: bool = False) -> dict[str, object]:
    pre_tokenizer = {"type": "Sequence", "pretokenizers": list(steps)}
    return {"pre_tokenizer": pre_tokenizer, "model": {"ignore_merges": ignore_merges}}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        ({"pre_tokenizer": BYTE_LEVEL, "model": {}}, "gpt-2"),
        (_sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL), "smollm"),
        (_sequence(_split(LLAMA3_PATTERN), BYTE_LEVEL | {"use_regex": False}, ignore_merges=True), "llama-bpe"),
        (_sequence(_split(LLAMA3_PATTERN), BYTE_LEVEL | {"use_regex": False}), "dbrx"),
    ],
)
def test_known_rules_have_their_llama_cpp_name(tokenizer: dict[str, object], name: str) -> None:
    assert llama_cpp_name(tokenizer) == name


@pytest.mark.parametrize(
    "tokenizer",
    [
        _sequence({"type": "Digits", "individual_digits": False}, BYTE_LEVEL),
        _sequence(_split(LLAMA3_PATTERN + "x"), BYTE_LEVEL | {"use_regex": False}),
        _sequence(BYTE_LEVEL, ignore_merges=True),
        {"pre_tokenizer": None, "model": {}},
        {"pre_tokenizer": {"type": "Whitespace"}, "model": {}},
    ],
)
def test_an_unknown_rule_is_refused(tokenizer: dict[str, object]) -> None:
    with pytest.raises(UnsupportedArchitecture, match="pre-tokenizer"):
        llama_cpp_name(tokenizer)
