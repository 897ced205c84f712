"""GPTQ by gptqmodel: a lost attempt goes on from its last checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.domain.quantization.catalog import parse_method
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.run import RecordingRun
from workers.quantization import packed
from workers.quantization.methods.gptq import GptqMethod

LAYERS = 4


class Interrupted(RecordingRun):
    """Ends as the third layer is finished."""

    def report(self, fraction: float, stage: str) -> None:
        super().report(fraction, stage)
        if stage.startswith("quantizing") and fraction > 0.7:
            raise KeyboardInterrupt


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return inspect_checkpoint(tiny_llama(tmp_path / "source", layers=LAYERS))


def quantize(run: RecordingRun, target: Path) -> dict[str, torch.Tensor]:
    target.mkdir(parents=True)
    _, params = parse_method({"type": "gptq", "group_size": 32, "calibration": {"samples": 4, "sequence_length": 32}})
    GptqMethod().quantize(run.source, target, params, run)
    return load_file(target / "model.safetensors")


def layers_of(run: RecordingRun) -> int:
    return len({fraction for fraction, stage in run.reports if stage.startswith("quantizing")})


def test_a_new_attempt_goes_on_from_the_last_checkpoint(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "CHECKPOINT_BYTES", 1)
    whole = RecordingRun(source, tmp_path / "whole")
    wanted = quantize(whole, tmp_path / "whole" / "target")
    with pytest.raises(KeyboardInterrupt):
        quantize(Interrupted(source, tmp_path / "parts"), tmp_path / "parts" / "first")
    second = RecordingRun(source, tmp_path / "parts")
    found = quantize(second, tmp_path / "parts" / "second")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert layers_of(whole) == LAYERS
    assert layers_of(second) < LAYERS


@pytest.mark.parametrize(("bytes_between", "layers"), [(1, 1), (3 * 107_000, 3)])
def test_small_layers_share_a_checkpoint(
    bytes_between: int, layers: int, source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "CHECKPOINT_BYTES", bytes_between)
    assert packed._checkpoints(source, RecordingRun(source, tmp_path)).interval_layers == layers
