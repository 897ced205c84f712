"""What the publication of a training leaves behind where it does not succeed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.domain.artifacts import ArtifactKind
from app.domain.errors import DiskFull, IllegalTransition
from app.domain.jobs import JobKind, JobState
from app.persistence.artifacts import ArtifactRepository
from app.persistence.jobs import JobRepository
from app.persistence.tables import JobRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage import artifacts
from workers.publisher import Publisher, Trained, trained_name

TRAINED = Trained(
    source={
        "name": "tiny", "fingerprint": "0" * 64, "path": str(Path(__file__).parent), "size_bytes": 1,
        "parameter_count": 1, "bits_per_weight": 16.0, "tensor_types": {"BF16": 1},
    },
    made={
        "report": {"parameter_count": 1, "weight_bytes": 2, "tensor_types": {"F32": 1}}, "format": "adapter",
        "key": "0" * 64, "method": {"type": "lora"}, "versions": {}, "seconds": 1.0, "peak_memory_bytes": 1,
    },
    manifest_sha256="0" * 64,
    result={},
)  # fmt: skip


@pytest.fixture
def job(sqlite_database: Database) -> JobRow:
    row = JobRow(
        id="ftjob-1", kind=JobKind.FINE_TUNING, state=JobState.QUEUED, queue="cpu", model="tiny",
        method={"type": "lora"}, user_metadata={}, created_at=time.time(),
    )  # fmt: skip
    with sqlite_database.transaction() as session:
        JobRepository(session).add(row)
    return row


@pytest.fixture
def staged(settings: Settings) -> Path:
    folder = settings.staging_folder / "ftjob-1-1" / "artifact"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    artifacts.seal(folder)
    return folder


def left(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.exists() else []


def test_a_disk_that_fills_up_at_the_end_leaves_no_artifact(
    sqlite_database: Database, settings: Settings, job: JobRow, staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(text: str, settings: Settings) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr("workers.publisher.store", full)
    with pytest.raises(DiskFull):
        Publisher(sqlite_database, settings).publish_trained(job, 1, staged, TRAINED)
    assert left(settings.artifacts_folder) == []


def test_a_base_that_was_taken_off_the_list_meanwhile_is_there_for_its_adapter(
    sqlite_database: Database, settings: Settings, job: JobRow, staged: Path
) -> None:
    with sqlite_database.transaction() as session:
        JobRepository(session).claim(job.id, worker_id="here-1", lease_seconds=60)
    Publisher(sqlite_database, settings).publish_trained(job, 1, staged, TRAINED)
    with sqlite_database.reading() as session:
        kinds = {row.name: row.kind for row in ArtifactRepository(session).list()}
    assert kinds == {"tiny": ArtifactKind.BASE, trained_name(job): ArtifactKind.FINE_TUNED}


def test_an_attempt_that_lost_its_job_leaves_neither_artifact_nor_file(
    sqlite_database: Database, settings: Settings, job: JobRow, staged: Path
) -> None:
    with pytest.raises(IllegalTransition):
        Publisher(sqlite_database, settings).publish_trained(job, 1, staged, TRAINED)
    assert left(settings.artifacts_folder) == left(settings.files_folder) == []


def test_workers_that_import_one_original_at_once_list_it_once(database: Database, settings: Settings) -> None:
    source = TRAINED.source | {"fingerprint": "1" * 64}
    together = threading.Barrier(8)

    def import_it(_: int) -> None:
        publisher = Publisher(database, settings)
        together.wait()
        publisher.import_source(source)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(import_it, range(8)))
    with database.reading() as session:
        assert [row.name for row in ArtifactRepository(session).list()] == ["tiny"]
