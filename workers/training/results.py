"""What a training measured at each step, as the file that OpenAI's clients look for."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable
from typing import Any, Final

from app.domain.files import FilePurpose
from app.domain.jobs import new_id
from app.persistence.tables import FileRow, JobEventRow
from app.settings import Settings
from app.storage.files import StagedFile

NAME: Final = "step_metrics.csv"
COLUMNS: Final = (
    "step", "train_loss", "train_mean_token_accuracy", "learning_rate", "tokens_per_second", "valid_loss",
    "valid_mean_token_accuracy",
)  # fmt: skip


def as_csv(events: Iterable[JobEventRow]) -> str:
    """A row per step, in their order; a step that was made again counts as it was made last."""
    rows: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.type == "metrics":
            rows[event.data["step"]] = rows.get(event.data["step"], {}) | event.data
    output = io.StringIO()
    writer = csv.DictWriter(output, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for _, row in sorted(rows.items()))
    return output.getvalue()


def store(text: str, settings: Settings) -> FileRow:
    """Puts the file on disk; its row is for the caller to commit. Raises DiskFull."""
    with StagedFile(settings) as staged:
        staged.write(text.encode())
        row = FileRow(
            id=new_id("file"), filename=NAME, purpose=FilePurpose.FINE_TUNE_RESULTS.value,
            size_bytes=staged.size_bytes, sha256=staged.sha256, created_at=time.time(),
        )  # fmt: skip
        staged.publish(row)
    return row
