"""A database and a data folder that do not belong together start no process, and nothing of them is deleted."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app import installation
from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.domain.errors import WrongInstallation
from app.domain.jobs import JobKind, JobState
from app.installation import adopt, require_installation
from app.persistence.artifacts import ArtifactRepository
from app.persistence.files import FileRepository
from app.persistence.jobs import JobRepository
from app.persistence.schema import migrate
from app.persistence.tables import ArtifactRow, FileRow, JobRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage.installation import ID_FILE, read_id, write_id
from workers.tidying import STRAY_SECONDS, Tidying


def add_artifact(database: Database, settings: Settings, name: str) -> Path:
    """A model as a job leaves it: a folder, and a row that names it."""
    with database.transaction() as session:
        ArtifactRepository(session).add(ArtifactRow(
            id=name, name=f"tiny:{name}", kind=ArtifactKind.QUANTIZED, format=ArtifactFormat.GGUF, path=name,
            source="tiny", source_fingerprint="0", key=name, method={"type": "gguf"}, suffix=None, versions={},
            size_bytes=1, parameter_count=1, bits_per_weight=8.0, tensor_types={}, manifest_sha256="0",
            quality=None, seconds=1.0, peak_memory_bytes=1, job_id=None, created_at=time.time(),
        ))  # fmt: skip
    return add_folder(settings.artifacts_folder / name)


def add_folder(folder: Path) -> Path:
    """Old enough to be taken for what a crash left."""
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"weights")
    old = time.time() - 2 * STRAY_SECONDS
    os.utime(folder, (old, old))
    return folder


def add_upload(database: Database, settings: Settings, name: str) -> Path:
    with database.transaction() as session:
        FileRepository(session).add(FileRow(
            id=name, filename="a.jsonl", purpose="fine-tune", size_bytes=1, sha256="0", created_at=time.time()
        ))  # fmt: skip
    settings.files_folder.mkdir(parents=True, exist_ok=True)
    path = settings.files_folder / name
    path.write_bytes(b"x")
    old = time.time() - 2 * STRAY_SECONDS
    os.utime(path, (old, old))
    return path


def add_job(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        JobRepository(session).add(JobRow(
            id=job_id, kind=JobKind.QUANTIZATION, state=JobState.QUEUED, queue="cpu", model="tiny",
            method={"type": "gguf"}, user_metadata={}, created_at=time.time(),
        ))  # fmt: skip


@pytest.fixture
def other(tmp_path: Path) -> Database:
    """A fresh database, which knows nothing of the data folder."""
    url = f"sqlite:///{tmp_path / 'other.sqlite3'}"
    migrate(url)
    return Database(url)


def test_a_new_installation_gets_one_id_in_both_halves(database: Database, settings: Settings) -> None:
    given = require_installation(database, settings)
    assert given.startswith("installation-")
    assert read_id(settings) == given
    assert require_installation(database, settings) == given


def test_an_installation_of_before_gets_its_id(database: Database, settings: Settings) -> None:
    add_artifact(database, settings, "artifact-1")
    add_folder(settings.artifacts_folder / "artifact-left-by-a-crash")
    add_job(database, "qjob-1")
    add_folder(settings.checkpoints_folder / "qjob-1")
    assert require_installation(database, settings) == read_id(settings)


@pytest.mark.parametrize("room", ["artifacts", "files", "checkpoints"])
@pytest.mark.parametrize("had_an_id", [True, False])
def test_a_fresh_database_is_refused_where_the_folder_holds_something(
    room: str, had_an_id: bool, sqlite_database: Database, other: Database, settings: Settings
) -> None:
    if had_an_id:
        require_installation(sqlite_database, settings)
    add_folder(settings.data_folder / room / "something")
    with pytest.raises(WrongInstallation, match=rf"does not know 1, such as {room}/something.*bitmill adopt"):
        require_installation(other, settings)


def test_another_installations_database_is_refused(
    sqlite_database: Database, other: Database, settings: Settings, tmp_path: Path
) -> None:
    here = require_installation(sqlite_database, settings)
    elsewhere = settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    there = require_installation(other, elsewhere)
    with pytest.raises(WrongInstallation, match=f"is that of {there}.* is that of {here}"):
        require_installation(other, settings)


def test_a_folder_that_is_not_mounted_is_refused(database: Database, settings: Settings, tmp_path: Path) -> None:
    require_installation(database, settings)
    add_artifact(database, settings, "artifact-1")
    empty = settings.model_copy(update={"data_dir": tmp_path / "empty"})
    with pytest.raises(WrongInstallation, match="is empty"):
        require_installation(database, empty)
    assert read_id(empty) is None


def test_a_password_is_not_told(settings: Settings, other: Database) -> None:
    add_folder(settings.artifacts_folder / "artifact-1")
    secret = settings.model_copy(update={"database_url": "postgresql+psycopg://bitmill:hunter2@db/bitmill"})
    with pytest.raises(WrongInstallation) as caught:
        require_installation(other, secret)
    assert "hunter2" not in caught.value.message
    assert "db/bitmill" in caught.value.message


def test_who_adopts_a_folder_may_start_and_loses_nothing(
    sqlite_database: Database, other: Database, settings: Settings
) -> None:
    require_installation(sqlite_database, settings)
    kept = [add_artifact(sqlite_database, settings, f"artifact-{number}") for number in (1, 2, 3)]
    kept += [add_upload(sqlite_database, settings, "file-1"), add_folder(settings.checkpoints_folder / "qjob-1")]
    adopted = adopt(other, settings)
    assert len(adopted.stock.unknown) == 5
    assert require_installation(other, settings) == adopted.id
    Tidying(other, settings).tidy()
    assert all(path.exists() for path in kept)
    with pytest.raises(WrongInstallation):
        require_installation(sqlite_database, settings)


def test_a_stray_goes_into_quarantine_and_days_later_for_good(database: Database, settings: Settings) -> None:
    known = [add_artifact(database, settings, f"artifact-{number}") for number in (1, 2)]
    stray = add_folder(settings.artifacts_folder / "artifact-stray")
    require_installation(database, settings)
    tidying = Tidying(database, settings)
    tidying.tidy()
    aside = settings.quarantine_folder / "artifacts" / "artifact-stray"
    assert (aside / "model.gguf").read_bytes() == b"weights"
    assert not stray.exists()
    tidying.tidy()
    assert aside.exists()
    moment = time.time() - settings.quarantine_days * 86_400 - 60
    os.utime(aside, (moment, moment))
    tidying.tidy()
    assert not aside.exists()
    assert all(path.exists() for path in known)


def test_what_is_young_may_still_get_its_row(database: Database, settings: Settings) -> None:
    add_artifact(database, settings, "artifact-1")
    require_installation(database, settings)
    young = settings.artifacts_folder / "artifact-2"
    young.mkdir()
    Tidying(database, settings).tidy()
    assert young.exists()


def test_a_restored_database_finds_again_what_it_knows(database: Database, settings: Settings) -> None:
    for number in (1, 2, 3):
        add_artifact(database, settings, f"artifact-{number}")
    require_installation(database, settings)
    newest = add_folder(settings.artifacts_folder / "artifact-4")  # made after the backup that was restored
    Tidying(database, settings).tidy()
    assert not newest.exists()
    old = time.time() - settings.quarantine_days * 86_400 - 60
    os.utime(settings.quarantine_folder / "artifacts" / "artifact-4", (old, old))
    newest.mkdir()
    newest.rmdir()
    with database.transaction() as session:  # a newer backup is restored: its row is there again
        row = ArtifactRepository(session).get("tiny:artifact-1")
        values = {column.key: getattr(row, column.key) for column in ArtifactRow.__table__.columns}
        ArtifactRepository(session).add(ArtifactRow(**values | {"id": "artifact-4", "name": "x", "path": "artifact-4"}))
    Tidying(database, settings).tidy()
    assert (newest / "model.gguf").read_bytes() == b"weights"


def test_nothing_is_touched_while_most_is_unknown(database: Database, settings: Settings) -> None:
    add_artifact(database, settings, "artifact-1")
    require_installation(database, settings)
    strays = [add_folder(settings.artifacts_folder / f"artifact-{number}") for number in (2, 3)]
    strays.append(add_folder(settings.staging_folder / "qjob-of-another-1"))
    expired = add_folder(settings.quarantine_folder / "artifacts" / "artifact-0")
    os.utime(expired, (0, 0))
    Tidying(database, settings).tidy()
    assert all(path.exists() for path in [*strays, expired])


def test_a_database_without_an_id_does_not_join_a_folder_that_has_one(
    sqlite_database: Database, other: Database, settings: Settings
) -> None:
    """It may belong to an installation that has only imported models yet."""
    require_installation(sqlite_database, settings)
    with pytest.raises(WrongInstallation, match="bitmill adopt"):
        require_installation(other, settings)


def test_a_database_that_lists_jobs_does_not_take_an_empty_folder(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    require_installation(database, settings)
    add_job(database, "qjob-1")
    with pytest.raises(WrongInstallation, match="is empty"):
        require_installation(database, settings.model_copy(update={"data_dir": tmp_path / "not-mounted"}))


def test_a_first_start_that_was_interrupted_goes_on(database: Database, settings: Settings) -> None:
    given = require_installation(database, settings)
    (settings.data_folder / ID_FILE).unlink()
    assert require_installation(database, settings) == given


def test_nothing_is_tidied_once_the_two_have_parted(database: Database, settings: Settings) -> None:
    require_installation(database, settings)
    for number in (1, 2):
        add_artifact(database, settings, f"artifact-{number}")
    stray = add_folder(settings.artifacts_folder / "artifact-stray")
    write_id(settings, "installation-of-another")  # another volume was mounted under the worker
    Tidying(database, settings).tidy()
    assert stray.exists()


def test_an_upload_in_quarantine_is_deleted_after_its_days(database: Database, settings: Settings) -> None:
    require_installation(database, settings)
    add_upload(database, settings, "file-1")
    stray = settings.files_folder / "file-stray"
    stray.write_bytes(b"x" * 1000)
    os.utime(stray, (0, 0))
    Tidying(database, settings).tidy()
    aside = settings.quarantine_folder / "files" / "file-stray"
    os.utime(aside, (0, 0))
    Tidying(database, settings).tidy()
    assert list(aside.parent.iterdir()) == []


def test_what_is_aside_does_not_speak_against_the_database(database: Database, settings: Settings) -> None:
    require_installation(database, settings)
    for number in (1, 2):
        add_artifact(database, settings, f"artifact-{number}")
    for number in (1, 2, 3):
        aside = add_folder(settings.quarantine_folder / "artifacts" / f"stray-{number}")
        os.utime(aside, (0, 0))
    Tidying(database, settings).tidy()
    assert list((settings.quarantine_folder / "artifacts").iterdir()) == []


def test_a_server_that_cannot_be_checked_ends(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its database was away at its start, and is another's, or unreadable, when it answers."""
    answers: list[Exception] = [OperationalError("SELECT", {}, Exception("away")), OSError("stale mount")]
    raised: list[int] = []

    def require(*_: object) -> str:
        raise answers.pop(0)

    monkeypatch.setattr(installation, "_require", require)
    monkeypatch.setattr(installation, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(installation.signal, "raise_signal", raised.append)

    async def serve() -> None:
        async with installation.checked_installation(Database(settings.database), settings):
            while not raised:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(serve(), 10))
    assert raised == [signal.SIGTERM]
