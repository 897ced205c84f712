"""Watching a layer run, and folding SmoothQuant's scales into its norms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.domain.quantization.calibration import CalibrationParams
from app.domain.quantization.methods.int8 import Int8Params
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.run import RecordingRun
from workers.quantization.calibrated_int8 import LayerQuantizer, Observer
from workers.quantization.linears import find_linears
from workers.quantization.sequential import LayerWalk

FEW = CalibrationParams(samples=4, sequence_length=32)


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return inspect_checkpoint(tiny_llama(tmp_path / "tiny", dtype="float32", layers=3))


def walk(source: Checkpoint, run: RecordingRun, params: Int8Params) -> list[Path]:
    walker = LayerWalk(source, run.calibration(FEW, run.report), run, run.checkpoints / "layers")
    return walker.walk(LayerQuantizer(params, find_linears(source, params.skip_modules), walker.weights))


def observed(source: Checkpoint, wanted: set[str], tmp_path: Path) -> list[tuple[str | None, list[str]]]:
    run = RecordingRun(source, tmp_path / "run")
    walker = LayerWalk(source, run.calibration(FEW, run.report), run, tmp_path / "layers")
    walker._capture_inputs()
    layer = next(iter(walker.layers.values()))
    observer = Observer(layer, wanted)
    with torch.inference_mode():
        walker._run_layer(layer)
    observer.close()
    return [(group.norm, sorted(group.linears)) for group in observer.groups]


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
    params = Int8Params(algorithm="gptq", smoothing=0.5)
    whole = walk(source, RecordingRun(source, tmp_path / "whole"), params)

    class Interrupted(RecordingRun):
        def report(self, fraction: float, stage: str) -> None:
            super().report(fraction, stage)
            if stage.startswith("quantizing layer 3"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk(source, Interrupted(source, tmp_path / "parts"), params)
    second = RecordingRun(source, tmp_path / "parts")
    resumed = walk(source, second, params)
    assert [stage for _, stage in second.reports if stage.startswith("quantizing")] == ["quantizing layer 3 of 3"]
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
