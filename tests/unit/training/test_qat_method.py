"""Quantization-aware training as one of the methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.errors import InvalidParameter
from app.domain.quantization.catalog import parse_method
from tests.fakes.run import RecordingRun
from tests.fakes.training import FILE_ID, FakeBase
from workers.loading import load_causal_lm
from workers.quantization.registry import load_method
from workers.training.collation import padding_of
from workers.training.examples import Encoder
from workers.training.losses import measure

SMALL = {"type": "qat", "learning_rate": 2e-3, "epochs": 10, "batch_size": 2, "sequence_length": 64}


def test_an_uploaded_file_is_learned(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    run = RecordingRun(base.checkpoint, tmp_path)
    run.uploads[FILE_ID] = facts
    spec, params = parse_method(SMALL | {"training_file": FILE_ID})
    (tmp_path / "target").mkdir()
    report = load_method(spec.name).quantize(base.checkpoint, tmp_path / "target", params, run)
    assert report.calibration is None
    assert report.bits_per_weight < 12
    encoder = Encoder(base.checkpoint, 64)
    examples = encoder.encode_file(facts)
    before, after = (
        measure(load_causal_lm(folder), examples.items, padding_of(encoder.tokenizer)).loss
        for folder in (base.checkpoint.path, tmp_path / "target")
    )
    assert after < 0.6 * before
    fractions = [fraction for fraction, _ in run.reports]
    assert fractions == sorted(fractions)


def test_a_bad_file_is_named_as_the_methods_parameter(base: FakeBase, tmp_path: Path) -> None:
    run = RecordingRun(base.checkpoint, tmp_path)
    run.uploads[FILE_ID] = tmp_path / "empty"
    (tmp_path / "empty").write_bytes(b"")
    spec, params = parse_method(SMALL | {"training_file": FILE_ID})
    with pytest.raises(InvalidParameter, match="holds no example") as caught:
        load_method(spec.name).quantize(base.checkpoint, tmp_path, params, run)
    assert caught.value.param == "method.training_file"


def test_a_new_attempt_goes_on_from_a_checkpoint(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    """All steps were done by an attempt that was lost: this one only writes, in no time and to the same result."""
    written = []
    for attempt in ("first", "second"):
        run = RecordingRun(base.checkpoint, tmp_path)
        run.uploads[FILE_ID] = facts
        spec, params = parse_method(SMALL | {"training_file": FILE_ID, "epochs": 2})
        (tmp_path / attempt).mkdir()
        load_method(spec.name).quantize(base.checkpoint, tmp_path / attempt, params, run)
        written.append((tmp_path / attempt / "model.safetensors").read_bytes())
        steps = [stage for _, stage in run.reports if stage.startswith("training: step")]
        assert len(steps) == (6 if attempt == "first" else 0)
    assert written[0] == written[1]
