"""What a job's process holds."""

from __future__ import annotations

from pathlib import Path

from workers.job_run import hold_checkpoints

SOME_KEY = "a" * 64
OTHER_KEY = "b" * 64


def test_only_the_same_work_goes_on_from_checkpoints(tmp_path: Path) -> None:
    assert hold_checkpoints(tmp_path, SOME_KEY) != hold_checkpoints(tmp_path, OTHER_KEY)


def test_checkpoints_that_another_attempt_still_writes_are_left_to_it(tmp_path: Path) -> None:
    first = hold_checkpoints(tmp_path, SOME_KEY)
    # Another descriptor, as another process would have: the kernel tells the two apart.
    second = hold_checkpoints(tmp_path, SOME_KEY)
    assert first == tmp_path / SOME_KEY[:32]
    assert second != first
