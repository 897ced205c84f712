"""Group sizes that suit a model."""

from __future__ import annotations

import pytest

from app.domain.quantization.catalog import dump_method
from app.domain.quantization.fitting import fit_groups


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {"model.layers.0.mlp.down_proj.weight": (64, width), "model.embed_tokens.weight": (10, 7)}


@pytest.mark.parametrize(("width", "size"), [(4096, 128), (576, 64), (96, 32), (48, 16)])
@pytest.mark.parametrize("method", ["gptq", "awq", "int4"])
def test_the_largest_size_that_divides_every_row_is_taken(method: str, width: int, size: int) -> None:
    assert dump_method(*fit_groups({"type": method}, shapes(width)))["group_size"] == size


def test_a_size_that_was_given_stays() -> None:
    assert dump_method(*fit_groups({"type": "gptq", "group_size": 128}, shapes(576)))["group_size"] == 128


def test_where_none_fits_the_method_is_left_as_it_is() -> None:
    assert dump_method(*fit_groups({"type": "gptq"}, shapes(7)))["group_size"] == 128


def test_methods_without_groups_are_read_as_they_are() -> None:
    assert dump_method(*fit_groups({"type": "none"}, shapes(576)))["type"] == "none"
