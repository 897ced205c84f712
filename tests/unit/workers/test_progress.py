"""Which progress reports become rows."""

from __future__ import annotations

import pytest

from workers.progress import ProgressGate


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_flood_of_reports_becomes_a_trickle() -> None:
    clock = Clock()
    gate = ProgressGate(clock)
    passed = 0
    for step in range(10_000):
        clock.now += 0.001
        passed += gate.lets_through(step / 10_000, "quantizing")
    assert 20 <= passed <= 40


def test_a_new_stage_passes_at_once() -> None:
    gate = ProgressGate(Clock())
    assert gate.lets_through(0.1, "converting")
    assert not gate.lets_through(0.1, "converting")
    assert gate.lets_through(0.1, "quantizing")


def test_the_time_left_follows_from_the_time_taken() -> None:
    clock = Clock()
    gate = ProgressGate(clock)
    gate.lets_through(0.2, "quantizing")
    assert gate.eta_seconds is None
    clock.now += 10
    gate.lets_through(0.4, "quantizing")
    assert gate.eta_seconds == pytest.approx(30)
