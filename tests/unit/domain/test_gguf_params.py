"""What the gguf method accepts, and how its artifacts are named."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from app.domain.errors import InvalidParameter
from app.domain.quantization.catalog import dump_method, parse_method
from app.domain.quantization.methods.gguf import BITS, NEEDS_MATRIX, SPEC, WEIGHED, GgufParams, GgufType


def parse(**values: Any) -> GgufParams:
    _, params = parse_method({"type": "gguf", **values})
    assert isinstance(params, GgufParams)
    return params


def test_the_tables_of_types_agree() -> None:
    assert set(BITS) == set(get_args(GgufType))
    assert NEEDS_MATRIX <= WEIGHED <= set(BITS)


@pytest.mark.parametrize("name", sorted(NEEDS_MATRIX))
def test_a_type_that_needs_a_matrix_is_refused_without_one(name: str) -> None:
    with pytest.raises(InvalidParameter, match=f"{name} only with an importance matrix.*'auto'"):
        parse(quantization=name, importance_matrix="none")
    assert parse(quantization=name).calibration_wanted() is not None
    assert parse(quantization=name, importance_matrix="file-000000000000000000000abc").calibration_wanted() is None


def test_a_tensor_type_that_needs_a_matrix_is_refused_without_one() -> None:
    with pytest.raises(InvalidParameter, match="IQ2_XS only with"):
        parse(importance_matrix="none", tensor_types={"ffn": "iq2_xs"})
    assert parse(quantization="Q8_0", tensor_types={"ffn": "iq2_xs"}).calibration_wanted() is not None


def test_tensor_types_are_read_in_either_case() -> None:
    params = parse(output_type="q8_0", embedding_type="Q6_K", tensor_types={"attn_v": "q5_k"})
    assert (params.output_type, params.embedding_type, params.tensor_types) == ("Q8_0", "Q6_K", {"attn_v": "Q5_K"})
    assert parse_method(dump_method(SPEC, params)) == (SPEC, params)


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"quantization": "Q9_0"}, "method.quantization"),
        ({"importance_matrix": "auto "}, "method.importance_matrix"),
        ({"importance_matrix": "file-"}, "method.importance_matrix"),
        ({"output_type": "q4_k_m"}, "method.output_type"),
        ({"output_type": "iq1_s"}, "method.output_type"),
        ({"embedding_type": "i32"}, "method.embedding_type"),
        ({"tensor_types": {"ffn": "q8_k"}}, "method.tensor_types.ffn"),
        ({"tensor_types": {"ffn(": "q8_0"}}, "method.tensor_types"),
        ({"split_bytes": 10}, "method.split_bytes"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(**values)
    assert caught.value.param == param


def test_labels_tell_overrides_apart() -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"output_type": "q8_0"},
        {"embedding_type": "q8_0"},
        {"tensor_types": {"a": "q8_0"}},
        {"tensor_types": {"a": "q8_0", "b": "q6_k"}},
        {"tensor_types": {"b": "q6_k", "a": "q8_0"}},
    ]
    labels = [SPEC.label(parse(**values)) for values in variants]
    assert labels[:3] == ["gguf-Q4_K_M", "gguf-Q4_K_M-out-Q8_0", "gguf-Q4_K_M-emb-Q8_0"]
    assert len(set(labels)) == len(labels)
