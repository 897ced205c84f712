"""Trainings that are interrupted, repeated, and told to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.domain.errors import BrokenSource, DiskFull, TrainingFailed
from app.domain.fine_tuning import LEARNING_RATES, Adapter, TrainingReport
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.training import FACTS, FakeBase, RecordingHooks, request_for, write_facts
from workers.training import checkpoints
from workers.training.hooks import Paused
from workers.training.trainer import examples_per_pass, warmup_steps
from workers.training.training import train

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"dropout": 0.1},
    "qlora": {"dropout": 0.1},
    "full": {"multiplier": 100.0},
    "qat": {"multiplier": 100.0},
}


def run(
    base: FakeBase,
    facts: Path,
    folder: Path,
    adapter: str,
    hooks: RecordingHooks,
    target: str = "target",
    **more: object,
) -> TrainingReport:
    (folder / target).mkdir()
    request = request_for(adapter, **(OPTIONS[adapter] | {"epochs": 4} | more))
    return train(base, folder / target, request, facts, facts, folder / "checkpoints", hooks, Settings(data_dir=folder))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("adapter", OPTIONS)
def test_a_paused_training_goes_on_as_if_it_had_not_been(
    adapter: str, base: FakeBase, facts: Path, tmp_path: Path
) -> None:
    """Within an epoch and at the end of one: the same losses, the same weights, dropout and data order included."""
    whole, parts = RecordingHooks(), RecordingHooks()
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    report = run(base, facts, tmp_path / "whole", adapter, whole)
    for attempt, pause_after in enumerate((2, 6)):
        parts.pause_after = pause_after
        with pytest.raises(Paused) as caught:
            run(base, facts, tmp_path / "parts", adapter, parts, f"target-{attempt}")
        assert caught.value.step == pause_after == parts.checkpoints[-1][0]
    parts.pause_after = None
    resumed = run(base, facts, tmp_path / "parts", adapter, parts)
    assert parts.losses == whole.losses
    assert parts.validations == whole.validations
    assert resumed == report
    first, second = weights(tmp_path / "whole" / "target"), weights(tmp_path / "parts" / "target")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_training_and_another_does_not(
    base: FakeBase, facts: Path, tmp_path: Path
) -> None:
    runs = []
    for number, seed in enumerate((7, 7, 8)):
        hooks, folder = RecordingHooks(), tmp_path / str(number)
        (folder / "target").mkdir(parents=True)
        request = request_for("lora", epochs=2).model_copy(update={"seed": seed})
        train(base, folder / "target", request, facts, None, folder / "ck", hooks, Settings(data_dir=folder))
        runs.append(hooks.losses)
    assert runs[0] == runs[1] != runs[2]


def test_a_training_that_was_finished_is_only_written_again(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    """A process may die between the last step and the last file; also where the steps end within an epoch."""
    hooks = RecordingHooks()
    report = run(base, facts, tmp_path, "lora", hooks, max_steps=4)
    again = RecordingHooks()
    repeated = run(base, facts, tmp_path, "lora", again, "again", max_steps=4)
    assert again.losses == []
    assert repeated == report
    assert report.steps == 4
    assert report.epochs == pytest.approx(4 / 3)
    first, second = weights(tmp_path / "target"), weights(tmp_path / "again")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_killed_process_left_half_written_is_not_gone_on_from(
    base: FakeBase, facts: Path, tmp_path: Path
) -> None:
    hooks = RecordingHooks(pause_after=2)
    with pytest.raises(Paused):
        run(base, facts, tmp_path, "lora", hooks)
    folder = tmp_path / "checkpoints"
    half = folder / checkpoints.WRITING / "checkpoint-5"
    half.mkdir(parents=True, exist_ok=True)
    (half / "optimizer.pt").write_bytes(b"half of")
    assert checkpoints.newest(folder) == folder / "checkpoint-2"
    hooks.pause_after = None
    run(base, facts, tmp_path, "lora", hooks, "second")
    assert sorted(hooks.steps) == list(range(1, 13))


def test_the_last_two_checkpoints_are_kept_and_are_whole(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    hooks = RecordingHooks()
    run(base, facts, tmp_path, "lora", hooks)
    assert [step for step, _, _ in hooks.checkpoints] == [3, 6, 9, 12]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-12", "checkpoint-9"]
    for name in kept:
        files = {path.name for path in (tmp_path / "checkpoints" / name).iterdir()}
        assert files >= {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "progress.json"}
    assert hooks.checkpoints[-1][2]["valid_loss"] == hooks.validations[12]["valid_loss"]


def test_checkpoints_are_written_by_the_clock_too(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    hooks = RecordingHooks()
    (tmp_path / "target").mkdir()
    settings = Settings(data_dir=tmp_path, training_checkpoint_seconds=1e-6)
    many = write_facts(tmp_path / "many", FACTS * 20)
    train(
        base, tmp_path / "target", request_for("lora", epochs=1), many, None, tmp_path / "checkpoints", hooks, settings
    )
    assert [step for step, _, _ in hooks.checkpoints] == list(range(1, 61))


def test_checkpoints_that_take_long_are_written_less_often(
    base: FakeBase, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one counts as slow here, and would take most of the time."""
    monkeypatch.setattr("workers.training.trainer.QUICK_SECONDS", 0.0)
    hooks = RecordingHooks()
    (tmp_path / "target").mkdir()
    settings = Settings(data_dir=tmp_path, training_checkpoint_seconds=1e-6)
    many = write_facts(tmp_path / "many", FACTS * 20)
    request = request_for("lora", epochs=1)
    train(base, tmp_path / "target", request, many, None, tmp_path / "checkpoints", hooks, settings)
    steps = [step for step, _, _ in hooks.checkpoints]
    assert 1 < len(steps) < 50
    assert steps[-1] == 60


def test_the_report_counts_what_was_read(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    report = run(base, facts, tmp_path, "lora", RecordingHooks())
    assert (report.steps, report.epochs, report.examples, report.truncated_examples) == (12, 4.0, 6, 0)
    assert report.trained_tokens == 4 * 163
    assert (
        report.parameter_count
        == report.trained_parameters
        == 2 * 16 * (64 + 64 + 64 + 32 + 64 + 32 + 64 + 64) + (2 * 16 * 3 * (64 + 128))
    )
    assert report.weight_bytes == 4 * report.parameter_count
    assert report.tensor_types == {"F32": 28}
    assert report.sample.file == "validation"
    assert report.sample.examples == 6
    assert report.sample.after < report.sample.before
    assert report.sample.after == pytest.approx(report.metrics["valid_loss"])


def test_gathered_passes_make_the_same_step_as_one(
    base: FakeBase, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "gathered").mkdir()
    one, gathered = RecordingHooks(), RecordingHooks()
    run(base, facts, tmp_path / "one", "full", one, epochs=1)
    monkeypatch.setattr("workers.training.trainer.TOKENS_PER_PASS", 40)
    run(base, facts, tmp_path / "gathered", "full", gathered, epochs=1)
    assert gathered.losses == pytest.approx(one.losses, rel=1e-2)


def test_gradient_checkpointing_changes_nothing_but_memory(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    losses = []
    for number, wanted in enumerate((False, True)):
        (tmp_path / str(number)).mkdir()
        hooks = RecordingHooks()
        run(base, facts, tmp_path / str(number), "qlora", hooks, gradient_checkpointing=wanted, epochs=2)
        losses.append(hooks.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_checkpoints_need_room(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, min_free_disk_bytes=2**60)
    (tmp_path / "target").mkdir()
    hooks = RecordingHooks()
    with pytest.raises(DiskFull):
        train(base, tmp_path / "target", request_for("full"), facts, None, tmp_path / "checkpoints", hooks, settings)
    assert hooks.steps == {}


def test_a_model_whose_loss_is_no_number_is_not_trained(facts: Path, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    from safetensors.torch import save_file

    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    broken = FakeBase("local/broken", inspect_checkpoint(folder))
    hooks = RecordingHooks()
    with pytest.raises(BrokenSource, match="the loss of the model is nan before the training"):
        run(broken, facts, tmp_path, "lora", hooks)
    assert hooks.steps == {}


def test_a_loss_that_is_no_number_ends_the_training(
    base: FakeBase, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEARNING_RATES, Adapter.FULL, 1e36)
    with pytest.raises(TrainingFailed, match="the loss is nan at step 2 of 12; lower learning_rate_multiplier"):
        run(base, facts, tmp_path, "full", RecordingHooks())


@pytest.mark.parametrize(
    ("validates", "words"),
    [(False, "the loss is nan after the training"), (True, "the loss on the validation file is nan after step 1 of 1")],
)
def test_a_last_step_that_breaks_the_model_ends_the_training(
    base: FakeBase, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, validates: bool, words: str
) -> None:
    """Its own loss was measured before it, and is a number."""
    monkeypatch.setitem(LEARNING_RATES, Adapter.FULL, 1e36)
    (tmp_path / "target").mkdir()
    hooks, request = RecordingHooks(), request_for("full", epochs=1, max_steps=1)
    validation = facts if validates else None
    settings = Settings(data_dir=tmp_path)
    with pytest.raises(TrainingFailed, match=words):
        train(base, tmp_path / "target", request, facts, validation, tmp_path / "checkpoints", hooks, settings)
    assert (len(hooks.steps), hooks.validations) == (1, {})


def test_a_full_training_writes_a_checkpoint_like_its_base(base: FakeBase, facts: Path, tmp_path: Path) -> None:
    hooks = RecordingHooks()
    report = run(base, facts, tmp_path, "full", hooks, epochs=10)
    assert hooks.losses[-1] < 0.6 * hooks.losses[0]
    found = inspect_checkpoint(tmp_path / "target")
    assert found.tensors.keys() == base.checkpoint.tensors.keys()
    assert report.tensor_types == {"BF16": len(found.tensors)}
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config.get("use_cache", True)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "target").iterdir()} == {0o644}


@pytest.mark.parametrize(("batch", "longest", "size"), [(16, 512, 8), (16, 64, 16), (7, 2048, 1), (6, 1365, 3)])
def test_a_pass_takes_a_share_of_the_batch_that_fits(batch: int, longest: int, size: int) -> None:
    assert examples_per_pass(batch, longest) == size


@pytest.mark.parametrize(("share", "steps", "warmup"), [(0.05, 20, 0), (0.05, 39, 0), (0.05, 40, 2), (0.0, 100, 0)])
def test_a_warmup_of_one_step_is_none(share: float, steps: int, warmup: int) -> None:
    assert warmup_steps(share, steps) == warmup
