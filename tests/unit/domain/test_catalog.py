"""Reading a request's `method`."""

from __future__ import annotations

import pytest

from app.domain.errors import IncompatibleModel, InvalidParameter, UnknownMethod, UnsupportedArchitecture
from app.domain.quantization.catalog import CATALOG, dump_method, find_method, parse_method
from workers.quantization.registry import REGISTRY


def test_defaults_are_filled_in() -> None:
    spec, params = parse_method({"type": "bitsandbytes"})
    assert dump_method(spec, params) == {
        "type": "bitsandbytes",
        "quantization": "nf4",
        "double_quant": False,
        "compute_dtype": "bf16",
        "blocksize": 64,
        "threshold": 6.0,
        "skip_modules": [],
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


def test_a_training_file_must_be_an_upload() -> None:
    with pytest.raises(InvalidParameter, match=r"'data.jsonl' is no file's id; upload the file"):
        parse_method({"type": "qat", "training_file": "data.jsonl"})


def test_a_training_file_takes_the_place_of_calibration() -> None:
    _, plain = parse_method({"type": "qat"})
    spec, taught = parse_method({"type": "qat", "training_file": "file-" + "0123456789abcdef" * 1 + "01234567"})
    assert plain.calibration_wanted() is not None
    assert taught.calibration_wanted() is None
    assert spec.label(taught) == "qat-w4a16-g32-01234567"


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
    with pytest.raises(InvalidParameter, match=r"^method: double_quant and blocksize apply to nf4"):
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


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ({"type": "bitsandbytes", "quantization": "int8", "blocksize": 128}, "blocksize"),
        ({"type": "bitsandbytes", "quantization": "nf4", "threshold": 3.0}, "threshold"),
        ({"type": "fp8", "format": "e5m2"}, "activations 'none'"),
        ({"type": "fp8", "granularity": "block", "activations": "none"}, "granularity 'channel'"),
        ({"type": "gptq", "bits": 5}, "2, 3, 4 or 8"),
        ({"type": "gptq", "group_size": 100}, "128"),
        ({"type": "gptq", "damping": 1.0}, "less than 1"),
        ({"type": "gptq", "overrides": {"[": {"bits": 8}}}, "no regular expression"),
        ({"type": "gptq", "overrides": {"down": {}}}, "skip=true or at least one"),
        ({"type": "gptq", "calibration": {"dataset": "enwik8"}}, "builtin"),
        ({"type": "awq", "bits": 8}, "4"),
        ({"type": "fp4", "skip_modules": ["a b"]}, "skip_modules"),
        ({"type": "int4", "group_size": 100}, "128"),
        ({"type": "int4", "algorithm": "awq"}, "rtn"),
        ({"type": "hqq", "bits": 5}, "2, 3, 4 or 8"),
        ({"type": "autoround", "iterations": 0}, "iterations"),
        ({"type": "autoround", "layout": "awq"}, "symmetric false"),
        ({"type": "autoround", "layout": "awq", "bits": 3, "symmetric": False}, "bits 4"),
        ({"type": "autoround", "bits": 8, "symmetric": False}, "8 bits are symmetric only"),
    ],
)
def test_values_out_of_range_are_refused_with_what_would_do(method: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_method(method)
    assert text in f"{caught.value.message} {caught.value.param}"


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ({"type": "gptq"}, "choose group_size 64"),
        ({"type": "awq", "group_size": 128}, "choose group_size 64"),
        ({"type": "fp8", "granularity": "block"}, "choose scales per channel"),
        ({"type": "hqq", "group_size": 128}, "choose group_size 64"),
        ({"type": "autoround"}, "choose group_size 64"),
        ({"type": "int4"}, "choose group_size 64"),
        ({"type": "int4", "group_size": -1}, None),
        ({"type": "gptq", "group_size": 64}, None),
        ({"type": "gptq", "group_size": -1}, None),
        ({"type": "fp4", "format": "mxfp4"}, None),
    ],
)
def test_a_group_size_must_divide_the_rows(method: dict[str, object], remedy: str | None) -> None:
    spec, params = parse_method(method)
    shapes = {"model.embed_tokens.weight": (1000, 100), "model.layers.0.mlp.up_proj.weight": (1536, 576)}
    if remedy is None:
        spec.require_groups(params, shapes)
        return
    with pytest.raises(IncompatibleModel, match=rf"up_proj.weight has rows of 576.*groups of 128.*{remedy}"):
        spec.require_groups(params, shapes)


def test_a_skipped_module_may_have_any_shape() -> None:
    spec, params = parse_method({"type": "fp4", "skip_modules": ["down_proj"]})
    spec.require_groups(params, {"model.layers.0.mlp.down_proj.weight": (64, 100)})


def test_only_what_is_needed_is_calibrated() -> None:
    _, eight_bits = parse_method({"type": "gguf", "quantization": "Q8_0"})
    _, four_bits = parse_method({"type": "gguf", "quantization": "Q4_K_M"})
    _, unweighed = parse_method({"type": "gguf", "quantization": "Q4_K_M", "importance_matrix": "none"})
    assert eight_bits.calibration_wanted() is None
    assert unweighed.calibration_wanted() is None
    assert four_bits.calibration_wanted() is not None
