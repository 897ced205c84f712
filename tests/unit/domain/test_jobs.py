"""The state machine as data."""

from __future__ import annotations

from app.domain.jobs import ALLOWED_TRANSITIONS, FINAL_STATES, JobState, public_status, sources_of


def test_every_state_has_its_row() -> None:
    assert set(ALLOWED_TRANSITIONS) == set(JobState)


def test_final_states_are_final() -> None:
    assert {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED} == FINAL_STATES


def test_every_state_but_the_first_can_be_reached() -> None:
    assert {state for state in JobState if not sources_of(state)} == set()
    assert sources_of(JobState.QUEUED) == {JobState.RUNNING, JobState.PAUSED}


def test_a_success_cannot_follow_a_wish_to_cancel() -> None:
    assert JobState.CANCELLING not in sources_of(JobState.SUCCEEDED)


def test_clients_see_a_cancelling_or_pausing_job_as_running() -> None:
    assert public_status(JobState.CANCELLING) == "running"
    assert public_status(JobState.PAUSING) == "running"
    assert public_status(JobState.PAUSED) == "paused"
    assert public_status(JobState.CANCELLED) == "cancelled"
