"""A whole installation in processes of its own, as `bitmill worker` and `bitmill api` would run it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from app.cli.launch import worker_command
from app.domain.jobs import FINAL_STATES, JobState
from app.persistence.jobs import JobRepository
from app.persistence.tables import JobRow
from app.persistence.unit_of_work import Database
from app.queue.configuration import create_celery
from app.queue.dispatcher import CeleryDispatcher
from app.services.quantization_jobs import NewJob, QuantizationJobService
from app.services.workers import WorkerService
from app.settings import Settings

T = TypeVar("T")


def environment(settings: Settings) -> dict[str, str]:
    """The settings as the variables that a child process reads."""
    values = {
        f"BITMILL_{name.upper()}": value
        for name, value in settings.model_dump(mode="json").items()
        if value not in (None, [], ())
    }
    texts = {name: ":".join(value) if isinstance(value, list) else str(value) for name, value in values.items()}
    return os.environ | texts | {"PYTHONUNBUFFERED": "1"}


def wait_until(condition: Callable[[], T | None], what: str, seconds: float = 90) -> T:
    """The condition's first true value. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s in vain: {what}")


@dataclass
class Installation:
    """Submits jobs and watches them through the services, beside real worker processes."""

    settings: Settings
    database: Database
    dispatcher: CeleryDispatcher
    workers: WorkerService
    jobs: QuantizationJobService

    @classmethod
    def on(cls, settings: Settings, database: Database) -> Installation:
        workers = WorkerService(database, settings)
        dispatcher = CeleryDispatcher(create_celery(settings))
        return cls(
            settings,
            database,
            dispatcher,
            workers,
            QuantizationJobService(database, settings, dispatcher, workers),
        )

    def submit(self, model: str, **method: object) -> str:
        return self.jobs.submit(NewJob(model=model, method=method)).id

    def wait(self, job_id: str, seconds: float = 120) -> JobRow:
        """The job as it ended."""

        def ended() -> JobRow | None:
            with self.database.reading() as session:
                job = JobRepository(session).get(job_id)  # of any kind
            return job if JobState(job.state) in FINAL_STATES else None

        return wait_until(ended, f"{job_id} ends", seconds)

    def wait_for_stage(self, job_id: str, *stages: str) -> JobRow:
        def reached() -> JobRow | None:
            job = self.jobs.get(job_id)
            assert JobState(job.state) not in FINAL_STATES, f"the job ended first: {job.error}"
            return job if any((job.stage or "").startswith(stage) for stage in stages) else None

        return wait_until(reached, f"{job_id} reaches {stages}")

    def history(self, job_id: str) -> list[str]:
        """The states that a job went through."""
        with self.database.reading() as session:
            events = JobRepository(session).events(job_id)
        return [event.data["status"] for event in events if event.type == "state"]

    @contextmanager
    def worker(self, name: str = "test") -> Iterator[subprocess.Popen[bytes]]:
        """A worker process that has said what it can do."""
        process = self.start_worker(name)
        try:
            wait_until(lambda: any(row.pid == process.pid for row in self.workers.live()), "the worker arrives")
            yield process
        finally:
            end(process)

    def start_worker(self, name: str) -> subprocess.Popen[bytes]:
        self.settings.logs_folder.mkdir(parents=True, exist_ok=True)
        log = self.settings.logs_folder / f"{name}.log"
        with log.open("ab") as output:
            return subprocess.Popen(
                worker_command(name), env=environment(self.settings), stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for what does not listen."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def job_children(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The job processes that a worker is running."""
    found = []
    for child in psutil.Process(worker.pid).children(recursive=True):
        try:
            if "workers.job_process" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def folders(path: Path) -> list[str]:
    return sorted(child.name for child in path.iterdir()) if path.exists() else []
