"""GPTQ's layout, written by hand and by gptqmodel."""

from __future__ import annotations

import pytest
import torch

from app.domain.errors import IncompatibleModel
from workers.quantization.gptq_layout import configuration, pack

OUTPUTS, INPUTS, GROUP = 64, 96, 32


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_words_are_those_that_gptqmodel_packs(bits: int) -> None:
    torch_linear = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (OUTPUTS, INPUTS), generator=generator)
    zeros = torch.randint(0, 2**bits, (OUTPUTS, INPUTS // GROUP), generator=generator)
    scales = torch.full(zeros.shape, 0.25)  # exact in any precision
    packed = pack("layer", codes, scales, zeros, bits)
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = ((codes - zeros.repeat_interleave(GROUP, dim=1)) * 0.25).float()
    theirs = torch_linear(bits, GROUP, False, False, INPUTS, OUTPUTS)
    theirs.pack_original(linear, scales, zeros, packed["g_idx"])
    for name, tensor in packed.items():
        assert torch.equal(tensor, getattr(theirs, name)), name
        assert tensor.dtype == getattr(theirs, name).dtype, name


def test_sizes_that_do_not_fill_words_are_refused() -> None:
    with pytest.raises(IncompatibleModel, match=r"up_proj has 40 outputs.*packs by 32.*skip_modules"):
        pack("mlp.up_proj", torch.zeros(40, 64), torch.ones(40, 2), torch.zeros(40, 2), 4)


def test_only_what_is_left_alone_needs_to_be_named() -> None:
    assert "dynamic" not in configuration(4, 64, [])
    assert configuration(4, 64, ["model.layers.0.mlp"])["dynamic"] == {r"-:^model\.layers\.0\.mlp$": {}}
