"""Engines and transactions: `with database.transaction() as session` commits at its end or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.orm import Session, sessionmaker

# A server that vanished without a word is noticed in seconds, not after the kernel's quarter of an hour.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
POSTGRESQL: Final[dict[str, int]] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# read_only_sql_transaction, as a standby or a demoted primary answers, and idle_in_transaction_session_timeout.
LOST: Final = frozenset({"25006", "25P03"})


class Database:
    """One pool of connections. SQLite runs in WAL mode: readers never wait for the writer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _create_engine(url)
        self._session = sessionmaker(self.engine, expire_on_commit=False)
        reader = self.engine.execution_options(bitmill_read_only=True)
        self._reading_session = sessionmaker(reader, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session whose work is committed when the block ends and rolled back when it raises."""
        with self._session() as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for queries only: on SQLite it takes no write lock and waits for nobody."""
        with self._reading_session() as session:
            yield session

    def close(self) -> None:
        self.engine.dispose()


def _create_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(url, pool_pre_ping=True, connect_args=POSTGRESQL)
        event.listen(engine, "handle_error", _leave_a_server_that_only_reads)
        return engine
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 30})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _leave_a_server_that_only_reads(context: ExceptionContext) -> None:
    """The connection is given up, as one that broke is: the next one may lead to the server that writes."""
    if getattr(context.original_exception, "sqlstate", None) in LOST:
        context.is_disconnect = True


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN comes too late for reads; ours, below, is explicit.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    # A deferred transaction that reads and then writes fails at once when another writer came between,
    # without waiting for busy_timeout. Readers that never write ask for a plain BEGIN.
    read_only = connection.get_execution_options().get("bitmill_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
