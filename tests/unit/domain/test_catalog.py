"""Reading a request's `method`."""

from __future__ import annotations

import pytest

from app.domain.errors import InvalidParameter, UnknownMethod, UnsupportedArchitecture
from app.domain.quantization.catalog import CATALOG, dump_method, find_method, parse_method
from workers.quantization.registry import REGISTRY


def test_defaults_are_filled_in() -> None:
    spec, params = parse_method({"type": "bitsandbytes"})
    assert dump_method(spec, params) == {
        "type": "bitsandbytes",
        "quantization": "nf4",
        "double_quant": False,
        "compute_dtype": "bf16",
    }


@pytest.mark.parametrize("name", CATALOG)
def test_what_is_dumped_can_be_parsed_again(name: str) -> None:
    spec, params = parse_method({"type": name})
    assert parse_method(dump_method(spec, params)) == (spec, params)


@pytest.mark.parametrize("name", CATALOG)
def test_key_and_name_agree(name: str) -> None:
    assert find_method(name).name == name


def test_each_method_has_an_implementation() -> None:
    assert set(REGISTRY) == set(CATALOG)


def test_an_unknown_method_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownMethod, match=r"'awesome'.*gguf") as caught:
        parse_method({"type": "awesome"})
    assert caught.value.param == "method.type"


def test_a_missing_type_is_named() -> None:
    with pytest.raises(UnknownMethod, match=r"method\.type is missing"):
        parse_method({"quantization": "Q4_K_M"})


def test_an_unknown_parameter_is_named_with_the_known_ones() -> None:
    with pytest.raises(InvalidParameter, match=r"no parameter 'bits'.*quantization") as caught:
        parse_method({"type": "gguf", "bits": 4})
    assert caught.value.param == "method.bits"


def test_a_wrong_value_is_named_with_what_would_do() -> None:
    with pytest.raises(InvalidParameter, match=r"Q4_K_M.*not 'Q9'") as caught:
        parse_method({"type": "gguf", "quantization": "Q9"})
    assert caught.value.param == "method.quantization"


def test_parameters_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidParameter, match="double_quant applies to nf4 and fp4"):
        parse_method({"type": "bitsandbytes", "quantization": "int8", "double_quant": True})


def test_labels_name_artifacts_apart() -> None:
    spec = find_method("bitsandbytes")
    labels = {
        spec.label(spec.params.model_validate(values))
        for values in (
            {"quantization": "int8"},
            {"quantization": "nf4"},
            {"quantization": "nf4", "double_quant": True},
            {"quantization": "fp4"},
        )
    }
    assert labels == {"bnb-int8", "bnb-nf4", "bnb-nf4-dq", "bnb-fp4"}


def test_an_architecture_that_a_method_cannot_take_is_refused() -> None:
    find_method("gguf").require_architecture("LlamaForCausalLM")
    find_method("none").require_architecture("AnythingForCausalLM")
    with pytest.raises(UnsupportedArchitecture, match=r"BertModel.*BITMILL_GGUF_CONVERTER"):
        find_method("gguf").require_architecture("BertModel")
    find_method("gguf").require_architecture("BertModel", widened=True)
