"""Progress bars fed by a job's event stream."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from app.client import BitmillClient

Json = dict[str, Any]


def follow_job(client: BitmillClient, job_id: str, console: Console, title: str | None = None) -> Json:
    """Shows one job's progress until it ends, and returns it as it ended."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[stage]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        stage = _progress(client.job(job_id))["stage"] or "queued"
        task = progress.add_task(title or job_id, total=1.0, stage=stage)
        for event in client.follow(job_id):
            if "fraction" in event["data"]:
                progress.update(task, completed=event["data"]["fraction"], stage=event["data"]["stage"])
            elif event["type"] == "metrics":
                progress.update(task, stage=event["message"])
            elif event["level"] != "info":
                progress.console.print(f"[yellow]{event['message']}")
        job = client.job(job_id)
        done = 1.0 if job["status"] == "succeeded" else _progress(job)["fraction"]
        stage = "reused" if job.get("reused") else job["status"]
        progress.update(task, completed=done, stage=stage)
    return job


def _progress(job: Json) -> Json:
    found: Json = job.get("progress") or job["bitmill"]["progress"]
    return found
