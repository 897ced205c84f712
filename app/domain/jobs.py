"""The states of a job and what may follow what."""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import Final


class JobKind(StrEnum):
    QUANTIZATION = "quantization"
    EVALUATION = "evaluation"
    FINE_TUNING = "fine_tuning"


class JobState(StrEnum):
    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # a worker holds its lease
    CANCELLING = "cancelling"  # somebody asked for its end; the worker has not confirmed it yet
    PAUSING = "pausing"  # somebody asked for a pause; the worker saves a checkpoint first
    PAUSED = "paused"  # no worker has it until somebody resumes it
    SUCCEEDED = "succeeded"  # its artifact is published and proven
    FAILED = "failed"  # its `error` says why
    CANCELLED = "cancelled"  # ended on request; nothing of it is left


ALLOWED_TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.PAUSED}),
    JobState.RUNNING: frozenset(
        {
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.CANCELLING,
            JobState.PAUSING,
            JobState.QUEUED,  # its worker was lost
        }
    ),
    # A job may end before its worker hears of the wish to pause it.
    JobState.PAUSING: frozenset({JobState.PAUSED, JobState.CANCELLING, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

# A worker is at work on the job.
STILL_RUNNING: Final = frozenset({JobState.RUNNING, JobState.CANCELLING, JobState.PAUSING})

FINAL_STATES: Final = frozenset(state for state, following in ALLOWED_TRANSITIONS.items() if not following)


def sources_of(target: JobState) -> frozenset[JobState]:
    """The states from which a job may go to `target`."""
    return frozenset(state for state, following in ALLOWED_TRANSITIONS.items() if target in following)


def public_status(state: JobState) -> str:
    """The `status` a client sees. A job being cancelled or paused still runs until its worker confirms."""
    return JobState.RUNNING.value if state in STILL_RUNNING else state.value


def new_id(prefix: str) -> str:
    """A random identifier such as `qjob-4f1c…` with 96 bits of entropy."""
    return f"{prefix}-{secrets.token_hex(12)}"
