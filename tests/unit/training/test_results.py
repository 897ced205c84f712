"""The table of what a training measured."""

from __future__ import annotations

from typing import Any

from app.persistence.tables import JobEventRow
from workers.training.results import as_csv


def event(type_: str, **data: Any) -> JobEventRow:
    return JobEventRow(id=0, job_id="ftjob-1", created_at=0.0, type=type_, level="info", message="", data=data)


def test_each_step_has_one_row_with_what_was_measured_last() -> None:
    events = [
        event("state", status="running"),
        event("metrics", step=1, total_steps=2, train_loss=2.0, train_mean_token_accuracy=0.5),
        event("metrics", step=2, total_steps=2, train_loss=9.0),
        event("metrics", step=2, total_steps=2, train_loss=1.0, learning_rate=0.1),
        event("metrics", step=2, total_steps=2, valid_loss=1.5, valid_mean_token_accuracy=0.75),
    ]
    assert as_csv(events).splitlines() == [
        "step,train_loss,train_mean_token_accuracy,learning_rate,tokens_per_second,valid_loss,"
        "valid_mean_token_accuracy",
        "1,2.0,0.5,,,,",
        "2,1.0,,0.1,,1.5,0.75",
    ]
