"""Results that are loaded back and held against what the training saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from app.domain.artifacts import Gate
from app.domain.errors import QualityGateFailed
from app.domain.fine_tuning import FineTuningRequest, TrainingProof, TrainingReport
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.training import FACTS, FakeBase, RecordingHooks, request_for, write_facts
from workers.training.proof import prove_training
from workers.training.training import train

REQUESTS = {
    "lora": request_for("lora"),
    "qlora": request_for("qlora"),
    "merged": request_for("qlora", merge=True),
    "full": request_for("full", multiplier=100.0),
}


def make(
    base: FakeBase, request: FineTuningRequest, facts: Path, validation: Path | None, folder: Path
) -> TrainingReport:
    (folder / "artifact").mkdir()
    settings = Settings(data_dir=folder)
    return train(base, folder / "artifact", request, facts, validation, folder / "ck", RecordingHooks(), settings)


def prove(
    base: FakeBase,
    request: FineTuningRequest,
    report: TrainingReport,
    facts: Path,
    folder: Path,
    validation: Path | None = None,
    gate: Gate = Gate.ON,
) -> TrainingProof:
    fractions: list[float] = []
    proof = prove_training(
        base,
        folder / "artifact",
        request,
        report,
        facts,
        validation,
        lambda fraction, stage: fractions.append(fraction),
        Settings(data_dir=folder),
        gate,
    )
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    return proof


@pytest.mark.parametrize("name", REQUESTS)
def test_a_result_is_what_was_trained_and_better_than_its_base(
    name: str, base: FakeBase, facts: Path, tmp_path: Path
) -> None:
    request = REQUESTS[name]
    report = make(base, request, facts, None, tmp_path)
    proof = prove(base, request, report, facts, tmp_path)
    assert proof.file == "training"
    assert proof.loss == pytest.approx(report.sample.after, rel=0.15 if name == "merged" else 0.02)
    assert proof.loss < 0.7 * proof.base_loss
    assert proof.accuracy > proof.base_accuracy
    assert proof.tokens == report.sample.tokens
    assert proof.prompt_text.endswith("assistant\n")
    assert proof.expected_text == FACTS[0][1]
    assert proof.generated_text != proof.base_text
    assert (proof.served_loss is not None) == (name == "qlora")


def test_the_validation_file_is_measured_where_there_is_one(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    held_out = write_facts(tmp_path / "validation", FACTS[:3])
    request = request_for("lora", epochs=3)
    report = make(base, request, facts, held_out, tmp_path)
    proof = prove(base, request, report, facts, tmp_path, held_out)
    assert (proof.file, proof.examples) == ("validation", 3)


def test_weights_that_are_not_the_trained_ones_are_found_out(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    request = request_for("lora")
    report = make(base, request, facts, None, tmp_path)
    file = tmp_path / "artifact" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: 0.5 * tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(QualityGateFailed, match="what was written is not what was trained"):
        prove(base, request, report, facts, tmp_path)
    assert prove(base, request, report, facts, tmp_path, gate=Gate.OFF).loss > report.sample.after


def test_a_training_that_taught_nothing_does_not_pass(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    request = request_for("lora", multiplier=1e-9, epochs=1)
    report = make(base, request, facts, None, tmp_path)
    with pytest.raises(QualityGateFailed, match="nothing was learned"):
        prove(base, request, report, facts, tmp_path)


def test_passes_and_files_keep_steps_that_bfloat16_cannot_hold(facts: Path, tmp_path: Path) -> None:
    """At the default learning rate a step is a fraction of what bfloat16 can tell apart in weights of this size."""
    folder = tiny_llama(tmp_path / "model", initializer_range=0.5, fitted=False)
    base, request = FakeBase("local/large", inspect_checkpoint(folder)), request_for("full", epochs=20, multiplier=1.0)
    report = make(base, request, facts, None, tmp_path)
    proof = prove(base, request, report, facts, tmp_path)
    assert proof.loss == pytest.approx(report.sample.after, rel=0.01)
    assert proof.loss < report.sample.before - 1.0
