"""Quantization-aware training: the grid that is trained on is the one that is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer
from transformers import AutoModelForCausalLM

from app.domain.errors import IncompatibleModel
from app.domain.fine_tuning import Scheme
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.training import FakeBase, RecordingHooks, request_for
from workers.quantization.compressed import compress, grid_of
from workers.training.checkpoints import newest
from workers.training.fake_quantization import STORED, FakeQuantizedLinear, RoundedWeight, scheme_of
from workers.training.proof import prove_training
from workers.training.qat import Qat
from workers.training.rounding import to_bfloat16
from workers.training.trainer import load_weights
from workers.training.training import train

TOKENS = torch.arange(40)[None] * 7 % 500
GRIDS = {"int4": {"type": "int4", "group_size": 32}, "int8-int4": {"type": "int8-int4", "group_size": 64}}


@pytest.fixture(params=GRIDS)
def grid(request: pytest.FixtureRequest) -> dict[str, Any]:
    return GRIDS[request.param]


def test_a_trained_model_is_stored_as_it_was_trained(
    grid: dict[str, Any], base: FakeBase, facts: Path, tmp_path: Path
) -> None:
    hooks, target, settings = RecordingHooks(), tmp_path / "target", Settings(data_dir=tmp_path)
    target.mkdir()
    request = request_for("qat", multiplier=100.0, quantization=grid)
    report = train(base, target, request, facts, None, tmp_path / "checkpoints", hooks, settings)
    assert hooks.losses[-1] < 0.6 * hooks.losses[0]
    assert report.tensor_types == {"INT4" if grid["type"] == "int4" else "I8": 14, "BF16": 7}
    assert report.parameter_count == base.checkpoint.parameter_count

    # The model as it trained, in the type that the artifact computes in.
    fake = Qat(request.bitmill).load(base.checkpoint)
    load_weights(fake, newest(tmp_path / "checkpoints"))
    codes = {name: module.grid()[0] for name, module in fake.named_modules() if isinstance(module, FakeQuantizedLinear)}
    fake = _outside_of_linears(fake)
    packed = AutoModelForCausalLM.from_pretrained(target, dtype="auto").eval()
    with torch.inference_mode():
        wanted, found = fake.eval()(TOKENS).logits, packed(TOKENS).logits
    assert torch.equal(wanted, found)
    assert len(codes) == 14

    proof = prove_training(base, target, request, report, facts, None, lambda *_: None, settings)
    assert proof.loss == pytest.approx(report.sample.after, rel=0.02)
    assert proof.loss < 0.7 * proof.base_loss


def _outside_of_linears(model: Any) -> Any:
    """Embeddings, norms and the output head in 16 bits, as they are stored; rounded weights find their grid in 32."""
    rounded = {name for name, module in model.named_modules() if isinstance(module, FakeQuantizedLinear)}
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in rounded:
            parameter.data = to_bfloat16(name, parameter.data)
    return model


def test_before_training_the_grid_is_that_of_rounding_alone(base: FakeBase) -> None:
    """What the control of a comparison is made of: the method int4 rounds to the same codes."""
    scheme = scheme_of(Scheme.INT4, 32)
    model = Qat(request_for("qat", quantization=GRIDS["int4"]).bitmill).load(base.checkpoint)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    stored = load_file(base.checkpoint.path / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    packed = compress("up_proj", stored, scheme)
    _, found = layer.grid()
    assert torch.equal(found.scale, packed["weight_scale"])


def test_the_grid_is_torchaos_but_for_how_it_divides() -> None:
    """Its scales are the same to the bit. It multiplies by a scale's reciprocal, rounded to the scale's type, which
    puts a weight in 150 on the next step.
    """
    weight = torch.randn(240, 960, generator=torch.Generator().manual_seed(0))
    peer = IntxFakeQuantizer(
        IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=True, scale_precision=STORED)
    )
    scheme = scheme_of(Scheme.INT4, 32)
    ours, theirs = RoundedWeight.apply(weight, scheme).float(), peer(weight).to(STORED).float()
    scale = grid_of(weight, scheme, STORED).scale
    assert torch.equal(scale, peer.scale)
    steps = (ours - theirs).unflatten(1, (-1, 32)) / scale.float()[..., None]
    assert steps.abs().max() < 1.1
    assert (steps.abs() > 0.5).float().mean() < 0.01


def test_gradients_pass_the_rounding() -> None:
    linear = torch.nn.Linear(64, 8)
    fake = FakeQuantizedLinear.of(linear, scheme_of(Scheme.INT8_INT4, 32))
    inputs = torch.randn(2, 3, 64, requires_grad=True)
    fake(inputs).float().sum().backward()
    assert fake.weight is linear.weight
    expected = inputs.detach().sum(dim=(0, 1)).expand(8, -1)
    assert torch.allclose(linear.weight.grad, expected, rtol=0.02, atol=0.1)
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0


def test_groups_that_do_not_divide_a_row_are_refused(base: FakeBase) -> None:
    with pytest.raises(IncompatibleModel, match="rows of 64 weights, which groups of 128 do not divide"):
        Qat(request_for("qat", quantization={"group_size": 128}).bitmill).load(base.checkpoint)


def test_tied_embeddings_and_skipped_layers_keep_16_bits(facts: Path, tmp_path: Path) -> None:
    tied = FakeBase("t", inspect_checkpoint(tiny_llama(tmp_path / "tied", tie_word_embeddings=True)))
    recipe = Qat(request_for("qat", quantization=GRIDS["int4"]).bitmill, skip=("down_proj",))
    model = recipe.load(tied.checkpoint)
    from workers.training.training import Writing

    (tmp_path / "target").mkdir()
    written = recipe.save(model, tied, tmp_path / "target", tmp_path, Writing(RecordingHooks(), 10**9))
    assert written.tensor_types["INT4"] == 12
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype="auto")
    with torch.inference_mode():
        assert torch.isfinite(found(TOKENS).logits).all()
