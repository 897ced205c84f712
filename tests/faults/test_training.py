"""A training whose process is killed at any moment goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.training import FakeBase, RecordingHooks, request_for, write_facts
from workers.training import checkpoints
from workers.training.training import train

ROOT = Path(__file__).parents[2]
# A checkpoint after nearly every step, so that one is being written at most moments.
CHILD = """
import sys
from pathlib import Path

from tests.faults.test_training import train_in

train_in(Path(sys.argv[1]))
"""


def train_in(folder: Path) -> RecordingHooks:
    hooks = RecordingHooks()
    target = folder / "target"
    target.mkdir(exist_ok=True)
    base = FakeBase("local/tiny", inspect_checkpoint(folder.parent / "model"))
    settings = Settings(data_dir=folder, training_checkpoint_seconds=1e-6)
    train(
        base,
        target,
        request_for("lora", epochs=8, dropout=0.1),
        folder.parent / "facts.jsonl",
        None,
        folder / "checkpoints",
        hooks,
        settings,
    )
    return hooks


def test_a_killed_training_gives_what_an_undisturbed_one_gives(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", initializer_range=0.05)
    write_facts(tmp_path / "facts.jsonl")
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = train_in(tmp_path / "whole")
    kill_after(7, tmp_path / "killed")
    resumed_from = checkpoints.newest(tmp_path / "killed" / "checkpoints")
    assert resumed_from is not None
    rest = train_in(tmp_path / "killed")
    first = checkpoints.step_of(resumed_from)
    assert 7 <= first < 24
    assert rest.losses == whole.losses[first:]
    trained, again = (
        load_file(tmp_path / name / "target" / "adapter_model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(trained[name], again[name]) for name in trained)


def kill_after(step: int, folder: Path) -> None:
    """Trains in a process of its own until a checkpoint of this step or a later one is there."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    try:
        while (found := checkpoints.newest(folder / "checkpoints")) is None or checkpoints.step_of(found) < step:
            assert child.poll() is None, "the training ended before it was killed"
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.001)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
