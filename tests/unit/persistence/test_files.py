"""Uploaded files' rows, on real SQLite and real PostgreSQL."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from app.domain.errors import FileNotFound
from app.domain.files import FilePurpose
from app.domain.jobs import JobState
from app.persistence.files import FileRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import FileRow
from app.persistence.unit_of_work import Database
from tests.unit.persistence.test_jobs import add_job

FIRST = "file-000000000000000000000001"


def add_file(database: Database, file_id: str = FIRST, **values: Any) -> str:
    defaults: dict[str, Any] = {
        "filename": "tiny.zip",
        "purpose": "model",
        "size_bytes": 5 * 10**10,
        "sha256": "a" * 64,
        "created_at": time.time(),
    }
    with database.transaction() as session:
        FileRepository(session).add(FileRow(id=file_id, **(defaults | values)))
    return file_id


def test_a_file_is_found_until_it_is_deleted(database: Database) -> None:
    add_file(database)
    with database.transaction() as session:
        files = FileRepository(session)
        assert files.get(FIRST).size_bytes == 5 * 10**10
        assert files.hold(FIRST).filename == "tiny.zip"
        assert files.ids() == {FIRST}
        files.delete(FIRST)
    with database.reading() as session, pytest.raises(FileNotFound, match=FIRST) as caught:
        FileRepository(session).get(FIRST, param="model")
    assert caught.value.param == "model"


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_follow_each_other_without_gap_or_overlap(database: Database, newest_first: bool) -> None:
    moment = time.time()
    for number in range(7):  # some of them at the very same time
        add_file(database, f"file-{number}", created_at=moment + number // 3)
    seen: list[str] = []
    after, more = None, True
    while more:
        with database.reading() as session:
            rows, more = FileRepository(session).page(limit=3, after=after, purpose=None, newest_first=newest_first)
        seen += [row.id for row in rows]
        after = rows[-1].id
    expected = [f"file-{number}" for number in range(7)]
    assert seen == (expected[::-1] if newest_first else expected)


def test_pages_can_be_filtered_by_purpose(database: Database) -> None:
    add_file(database, "file-1", purpose="model")
    add_file(database, "file-2", purpose="calibration")
    with database.reading() as session:
        rows, _ = FileRepository(session).page(limit=10, after=None, purpose=FilePurpose.CALIBRATION, newest_first=True)
    assert [row.id for row in rows] == ["file-2"]


def test_a_page_after_an_unknown_file_names_the_field(database: Database) -> None:
    with database.reading() as session, pytest.raises(FileNotFound) as caught:
        FileRepository(session).page(limit=1, after="file-none", purpose=None, newest_first=True)
    assert caught.value.param == "after"


def test_unfinished_jobs_on_a_file_are_found_by_model_and_by_method(database: Database) -> None:
    add_job(database, "qjob-model", model=FIRST)
    add_job(database, "qjob-method", method={"type": "gguf", "calibration": {"dataset": FIRST}})
    add_job(database, "qjob-done", model=FIRST, state=JobState.SUCCEEDED)
    add_job(database, "qjob-other", model=FIRST + "0", method={"type": "none", "dtype": FIRST + "0"})
    with database.reading() as session:
        found = JobRepository(session).active_on_file(FIRST)
    assert {job.id for job in found} == {"qjob-model", "qjob-method"}


def test_whoever_holds_a_file_keeps_others_from_deleting_it(database: Database) -> None:
    add_file(database)
    order: list[str] = []
    held = threading.Event()

    def delete() -> None:
        held.wait()
        with database.transaction() as session:
            FileRepository(session).hold(FIRST)
            order.append("deleted")
            FileRepository(session).delete(FIRST)

    thread = threading.Thread(target=delete)
    thread.start()
    with database.transaction() as session:
        FileRepository(session).hold(FIRST)
        held.set()
        thread.join(timeout=0.5)
        order.append("released")
    thread.join()
    assert order == ["released", "deleted"]
