"""One attempt at a fine-tuning job, as its supervisor sees it. Imports no ML library."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from app.domain.errors import IllegalTransition
from workers.attempt import Attempt
from workers.publisher import Trained, trained_name

if TYPE_CHECKING:
    from workers.supervisor import Supervisor


def fine_tune(supervisor: Supervisor, attempt: Attempt) -> None:
    """Trains in one process, measures the result in another, and publishes it.

    Raises what the children raised, CancelRequested, PauseRequested or LeaseLost.
    """
    started = time.monotonic()
    attempt.staging.mkdir(parents=True)
    with supervisor.child(attempt, "train") as child:
        source = supervisor.wait_for(child, attempt, "resolved")
        supervisor.import_source(attempt, source)
        child.send({"go": True})
        made = supervisor.wait_for(child, attempt, "done")
    with supervisor.child(attempt, "prove_training") as child:
        child.send({"made": made, "name": trained_name(attempt.job)})
        proof = supervisor.wait_for(child, attempt, "done")
    made["peak_memory_bytes"] = max(made["peak_memory_bytes"], proof["peak_memory_bytes"])
    made["seconds"] = time.monotonic() - started
    result = made["report"] | {"hyperparameters": made["hyperparameters"], "proof": proof["proof"]}
    _publish(supervisor, attempt, Trained(source, made, proof["manifest_sha256"], result))


def _publish(supervisor: Supervisor, attempt: Attempt, trained: Trained) -> None:
    staged = attempt.staging / "artifact"
    try:
        supervisor.record.to_the_end(
            lambda: supervisor.publisher.publish_trained(attempt.job, attempt.number, staged, trained)
        )
    except IllegalTransition as error:
        raise supervisor.record.why_not(attempt) from error
