"""Compressed-tensors' layouts on a small weight: what is stored stands for the weight it was made of."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor

from app.domain.errors import IncompatibleModel
from workers.quantization.compressed import (
    PARTS,
    compress,
    configuration,
    grid_of,
    integer_scheme,
    scheme,
    store_codes,
)

# Half of the coarsest step between two values that the format can store, relative to the greatest of its group.
LARGEST_ERROR = {"FP8_DYNAMIC": 2**-4, "FP8_BLOCK": 2**-4, "W8A8": 0.5 / 127, "NVFP4A16": 1 / 6, "MXFP4A16": 1 / 3}


def a_weight() -> torch.Tensor:
    return torch.randn(48, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


@pytest.mark.parametrize("preset", LARGEST_ERROR)
def test_the_stored_weight_stands_for_the_given_one(preset: str) -> None:
    weight, chosen = a_weight(), scheme(preset)
    stored = compress("layer", weight, chosen)
    assert set(stored) <= set(PARTS)
    restored = BaseCompressor.get_value_from_registry(chosen.format.value).decompress(stored, chosen)["weight"]
    error = (restored.float() - weight.float()).abs()
    assert error.max() <= LARGEST_ERROR[preset] * weight.float().abs().max()
    assert error.max() > 0


@pytest.mark.parametrize(("preset", "bits"), [("FP8_DYNAMIC", 8), ("W8A8", 8), ("NVFP4A16", 4), ("MXFP4A16", 4)])
def test_weights_take_the_bits_that_they_should(preset: str, bits: int) -> None:
    stored = compress("layer", a_weight(), scheme(preset))
    packed = stored.get("weight_packed", stored.get("weight"))
    assert packed is not None
    assert packed.numel() * packed.element_size() * 8 == a_weight().numel() * bits


def test_rows_that_the_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(IncompatibleModel, match=r"down_proj has rows of 24 weights.*groups of 16"):
        compress("model.layers.0.mlp.down_proj", torch.zeros(4, 24), scheme("NVFP4A16"))


def test_a_weight_of_zeros_has_finite_scales() -> None:
    for preset in LARGEST_ERROR:
        stored = compress("layer", torch.zeros(32, 64, dtype=torch.bfloat16), scheme(preset))
        assert all(tensor.float().isfinite().all() for tensor in stored.values()), preset


def test_the_configuration_says_what_the_library_reads() -> None:
    entry = configuration(scheme("FP8_DYNAMIC"), ["lm_head"])
    assert (entry["quant_method"], entry["format"]) == ("compressed-tensors", "float-quantized")
    assert entry["quantization_status"] == "compressed"
    assert entry["ignore"] == ["lm_head"]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [-1, 16, 64])
def test_four_bit_codes_are_packed_as_the_library_packs_them(group_size: int, symmetric: bool) -> None:
    chosen = integer_scheme(4, group_size=group_size, symmetric=symmetric)
    weight = a_weight().float()
    grid = grid_of(weight, chosen, torch.float32)
    stored = compress("layer", weight, chosen)
    state = {"weight": weight, "weight_scale": grid.scale, "weight_zero_point": grid.zero_point}
    theirs = BaseCompressor.get_value_from_registry("pack-quantized").compress(state, chosen)
    assert set(stored) == set(theirs) <= set(PARTS)
    for name, tensor in theirs.items():
        assert torch.equal(stored[name], tensor), name
        assert stored[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("symmetric", [True, False])
def test_given_codes_are_stored_as_they_are(symmetric: bool) -> None:
    """As training that knows its rounding gives them: not what the weight would be rounded to."""
    chosen = integer_scheme(4, group_size=32, symmetric=symmetric)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (48, 64), generator=generator)
    scale = torch.rand(48, 2, generator=generator) + 0.5
    zero_point = torch.zeros(48, 2) if symmetric else torch.randint(-8, 8, (48, 2), generator=generator)
    stored = store_codes(codes, scale, zero_point, chosen)
    restored = BaseCompressor.get_value_from_registry("pack-quantized").decompress(stored, chosen)["weight"]
    expected = (codes - zero_point.repeat_interleave(32, dim=1)) * scale.repeat_interleave(32, dim=1)
    assert torch.allclose(restored, expected.float())


def test_scales_too_small_for_their_type_are_none() -> None:
    chosen = integer_scheme(4, group_size=32, symmetric=True)
    stored = compress("layer", torch.full((32, 64), 1e-7, dtype=torch.float16), chosen)
    assert (stored["weight_scale"] > 0).all()


def test_packed_zero_points_are_unpacked_by_transformers_when_it_loads() -> None:
    assert "dequantize" not in configuration(integer_scheme(4, group_size=32, symmetric=True), [])
    assert configuration(integer_scheme(4, group_size=32, symmetric=False), [])["dequantize"] is True
