"""Who may go on with a job, and who may take one from another: by clocks that nobody sets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from app.settings import Settings
from workers.lease import Lease, Sight


@dataclass
class Clock:
    monotonic: float = 1000.0
    wall: float = 1_000_000.0

    def pass_by(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


def test_a_lease_ends_by_the_local_clock_alone() -> None:
    clock = Clock()
    lease = Lease(10, lambda: clock.monotonic)
    clock.wall += 3600  # somebody sets the machine's clock
    clock.pass_by(9)
    assert not lease.has_ended
    clock.pass_by(1)
    assert lease.has_ended


def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    clock = Clock()
    lease = Lease(10, lambda: clock.monotonic)
    asked = lease.now()
    clock.pass_by(8)  # the database took its time
    lease.renewed(asked)
    clock.pass_by(2)
    assert lease.has_ended


def sight_of(clock: Clock) -> Sight:
    return Sight(10, 2, monotonic=lambda: clock.monotonic, wall=lambda: clock.wall)


def test_who_has_seen_nothing_yet_judges_nobody() -> None:
    clock = Clock()
    sight = sight_of(clock)
    assert not sight.may_judge
    sight.note()
    assert sight.may_judge


def test_after_a_gap_others_have_a_lease_s_time_to_come_back() -> None:
    clock = Clock()
    sight = sight_of(clock)
    sight.note()
    clock.pass_by(30)  # the database is away
    sight.note()
    assert not sight.may_judge
    for _ in range(4):
        clock.pass_by(2)
        sight.note()
        assert not sight.may_judge
    clock.pass_by(2)
    sight.note()
    assert sight.may_judge


def test_a_clock_that_is_set_and_a_machine_that_slept_are_gaps() -> None:
    for step in (3600.0, -3600.0):
        clock = Clock()
        sight = sight_of(clock)
        sight.note()
        clock.pass_by(2)
        clock.wall += step
        sight.note()
        assert not sight.may_judge


def test_rare_heartbeats_are_no_gaps() -> None:
    clock = Clock()
    sight = Sight(60, 31, monotonic=lambda: clock.monotonic, wall=lambda: clock.wall)
    for _ in range(5):
        sight.note()
        assert sight.may_judge
        clock.pass_by(33)


def test_a_lease_outlasts_several_heartbeats() -> None:
    with pytest.raises(ValidationError, match=r"BITMILL_LEASE_SECONDS.*at least three times"):
        Settings(lease_seconds=15, heartbeat_seconds=8)
