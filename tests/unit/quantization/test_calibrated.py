"""Watching a layer run, and folding SmoothQuant's scales into its norms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.domain.quantization.calibration import CalibrationParams
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.models import tiny_model
from tests.fakes.run import RecordingRun
from workers.quantization.algorithms.grid import Grid
from workers.quantization.calibrated import LayerQuantizer, NormExample, Observer, Rounding
from workers.quantization.compressed import grid_of, integer_scheme, scheme
from workers.quantization.linears import Linears, find_linears
from workers.quantization.sequential import LayerWalk

FEW = CalibrationParams(samples=4, sequence_length=32)


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return inspect_checkpoint(tiny_llama(tmp_path / "tiny", dtype="float32", layers=3))


def eight_bits(weight: torch.Tensor) -> Grid:
    return grid_of(weight, scheme("W8A8"), torch.float32)


def walk(source: Checkpoint, run: RecordingRun, rounding: Rounding) -> list[Path]:
    walker = LayerWalk(source, run.calibration(FEW, run.report), run, run.checkpoints / "layers")
    return walker.walk(LayerQuantizer(rounding, eight_bits, find_linears(source), walker.weights))


def observed(source: Checkpoint, wanted: set[str], tmp_path: Path) -> list[tuple[str | None, list[str]]]:
    run = RecordingRun(source, tmp_path / "run")
    walker = LayerWalk(source, run.calibration(FEW, run.report), run, tmp_path / "layers")
    walker._capture_inputs()
    layer = next(iter(walker.layers.values()))
    observer = Observer(layer, wanted)
    with torch.inference_mode():
        walker._run_layer(0, layer)
    observer.close()
    return [(group.norm.name if group.norm else None, sorted(group.linears)) for group in observer.groups]


ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
OTHERS = {"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


def test_linears_that_share_an_input_are_found_with_their_norm(source: Checkpoint, tmp_path: Path) -> None:
    assert observed(source, ATTENTION | OTHERS, tmp_path) == [
        ("input_layernorm", sorted(ATTENTION)),
        (None, ["self_attn.o_proj"]),
        ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        (None, ["mlp.down_proj"]),
    ]


def test_a_norm_that_feeds_an_unquantized_layer_is_not_folded(source: Checkpoint, tmp_path: Path) -> None:
    groups = observed(source, (ATTENTION | OTHERS) - {"self_attn.k_proj"}, tmp_path)
    assert groups[0] == (None, ["self_attn.q_proj", "self_attn.v_proj"])
    assert groups[2][0] == "post_attention_layernorm"


def test_a_new_attempt_goes_on_after_the_last_finished_layer(source: Checkpoint, tmp_path: Path) -> None:
    rounding = Rounding(algorithm="gptq", damping=0.01, smoothing=0.5)
    whole = walk(source, RecordingRun(source, tmp_path / "whole"), rounding)

    class Interrupted(RecordingRun):
        def report(self, fraction: float, stage: str) -> None:
            super().report(fraction, stage)
            if stage.startswith("quantizing layer 3"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk(source, Interrupted(source, tmp_path / "parts"), rounding)
    second = RecordingRun(source, tmp_path / "parts")
    resumed = walk(source, second, rounding)
    assert [stage for _, stage in second.reports if stage.startswith("quantizing")] == ["quantizing layer 3 of 3"]
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


class NormWithBias(torch.nn.LayerNorm):
    """A norm whose bias no weight can divide."""


@pytest.mark.parametrize(
    ("norm", "folds"),
    [(torch.nn.RMSNorm(8, eps=1e-6), True), (NormWithBias(8, eps=1e-6), False)],
)
def test_a_norm_is_folded_only_where_that_divides_its_output(norm: torch.nn.Module, folds: bool) -> None:
    torch.manual_seed(0)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    weights = FakeWeights(norm)
    given, factors = torch.randn(4, 8), torch.rand(8) + 0.5
    with torch.inference_mode():
        example = NormExample("norm", given, norm(given))
        quantizer = LayerQuantizer(Rounding(algorithm="rtn", damping=0.01), eight_bits, Linears({}, []), weights)
        folded = quantizer._fold(norm, "weight", example, factors)
        assert (folded is not None) == folds
        if folded is not None:
            norm.weight.copy_(folded)
            assert torch.allclose(norm(given) * factors, example.made, atol=1e-5)


class FakeWeights(dict[str, torch.Tensor]):
    """What a streamed model reads from: replacing an entry changes what the module multiplies by."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__(weight=norm.get_parameter("weight").detach().clone())
        self.norm = norm
        self.state_dict = self

    def update(self, tensors: dict[str, torch.Tensor]) -> None:  # type: ignore[override]  # all that is used of it
        self.original = self["weight"]
        self.norm.get_parameter("weight").copy_(tensors["weight"])

    def __delitem__(self, name: str) -> None:
        self.norm.get_parameter("weight").copy_(self.original)


def test_a_layers_own_mask_and_rotary_embedding_are_used(tmp_path: Path) -> None:
    """Walking through Gemma 3 without changing anything gives what transformers gives."""
    source = inspect_checkpoint(tiny_model("Gemma3ForCausalLM", tmp_path / "gemma", sliding_window=8))
    run = RecordingRun(source, tmp_path / "run")
    walker = LayerWalk(source, run.calibration(FEW, run.report), run, tmp_path / "layers")
    walker.walk(lambda name, layer, run_layer: ({}, {}))
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    with torch.inference_mode():
        expected = model.get_decoder()(torch.cat(walker.batches), use_cache=False).last_hidden_state
        found = model.get_decoder().norm(torch.cat(walker._hidden))
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_groups_are_clipped_where_that_brings_the_outputs_closer() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 32, generator=generator)
    inputs = torch.randn(200, 32, generator=generator)
    four_bits = integer_scheme(4, group_size=16, symmetric=True)

    def output_error(clipped_groups: int | None) -> float:
        rounding = Rounding(algorithm="rtn", damping=0.01, clipped_groups=clipped_groups)
        quantizer = LayerQuantizer(
            rounding, lambda matrix: grid_of(matrix, four_bits, torch.float32), Linears({}, []), {}
        )
        hessian = inputs.T @ inputs
        grid = quantizer._grid(weight, hessian)
        change = grid.restore(quantizer._round(weight, hessian, grid)) - weight
        return (inputs @ change.T).square().sum().item()

    assert output_error(16) < 0.9 * output_error(None)
