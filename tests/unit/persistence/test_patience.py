"""Which of a database's errors pass by themselves, and how long they are waited for."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from app.persistence import patience
from app.persistence.patience import for_a_while, is_away, patiently
from app.persistence.unit_of_work import Database


def error_of(database: Database, statement: str) -> SQLAlchemyError:
    with pytest.raises(SQLAlchemyError) as caught, database.transaction() as session:
        session.execute(text(statement))
    return caught.value


def test_a_server_that_is_not_there_is_away() -> None:
    assert is_away(error_of(Database("postgresql+psycopg://nobody@127.0.0.1:1/none"), "SELECT 1"))


def test_a_lock_that_outlasts_the_driver_s_patience_is_away(tmp_path: Path) -> None:
    path = tmp_path / "locked.sqlite3"
    database = Database(f"sqlite:///{path}")
    event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=100"))
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert is_away(error_of(database, "SELECT 1"))


def test_a_connection_that_the_server_ends_is_away(postgresql_server: str) -> None:
    database = Database(postgresql_server)
    with pytest.raises(SQLAlchemyError) as caught, database.transaction() as session:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert is_away(caught.value)


def test_a_server_that_only_reads_is_away_and_its_connection_is_left(postgresql_server: str) -> None:
    """As after a failover, where the old connection leads to what is a standby now."""
    database = Database(postgresql_server)
    before = backend(database)
    error = error_of(database, "SET TRANSACTION READ ONLY; CREATE TABLE nothing (id int)")
    assert is_away(error)
    assert backend(database) != before


def backend(database: Database) -> int:
    with database.reading() as session:
        return int(session.execute(text("SELECT pg_backend_pid()")).scalar_one())


def test_a_wrong_statement_is_no_absence(database: Database) -> None:
    error = error_of(database, "INSERT INTO installation VALUES (1, 'a', 0), (1, 'b', 0)")
    assert isinstance(error, IntegrityError)
    assert not is_away(error)
    if database.engine.dialect.name == "postgresql":
        assert not is_away(error_of(database, "SELECT nothing"))


def away() -> OperationalError:
    return OperationalError("SELECT 1", {}, Exception("the server is shutting down"))


def test_work_is_done_again_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.0)
    answers = [away(), away(), "done"]
    asked: list[BaseException] = []

    def work() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert patiently(work, asked.append) == "done"
    assert len(asked) == 2


def test_what_will_not_pass_is_raised_at_once() -> None:
    asked: list[BaseException] = []

    def work() -> None:
        raise ProgrammingError("SELECT", {}, Exception("no such column"))

    with pytest.raises(ProgrammingError):
        patiently(work, asked.append)
    assert asked == []


def test_after_its_time_the_database_s_own_error_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_SECONDS", 0.01)

    def work() -> None:
        raise away()

    with pytest.raises(OperationalError, match="shutting down"):
        patiently(work, for_a_while(0.05))
