"""Celery's tasks: three lines each, and an id is all they carry."""

from __future__ import annotations

from app.queue.configuration import RUN_JOB
from workers.celery_app import app, supervisor


@app.task(name=RUN_JOB)
def run_job(job_id: str) -> None:
    supervisor.run(job_id)
