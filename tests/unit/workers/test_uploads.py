"""What jobs read of uploaded files."""

from __future__ import annotations

from dataclasses import fields

import pytest

from app.domain.errors import FileNotFound, InvalidParameter
from app.domain.files import FilePurpose
from app.domain.quantization.calibration import CalibrationParams
from app.persistence.unit_of_work import Database
from app.services.files import FileService
from app.settings import Settings
from workers.job_run import Run, read_calibration_documents


def upload(database: Database, settings: Settings, name: str, content: bytes, purpose: str = "calibration") -> str:
    files = FileService(database, settings)
    with files.stage(0) as staged:
        staged.write(content)
        return files.add(staged, name, purpose).id


def test_calibration_reads_an_upload_in_the_format_that_its_name_says(
    sqlite_database: Database, settings: Settings
) -> None:
    lines = b'{"text": "one"}\n{"text": "two"}\n'
    for name, expected in (("a.jsonl", ["one", "two"]), ("a.txt", [lines.decode()])):
        file_id = upload(sqlite_database, settings, name, lines)
        assert read_calibration_documents(CalibrationParams(dataset=file_id), settings) == expected


def test_an_upload_for_something_else_is_refused(sqlite_database: Database, settings: Settings) -> None:
    file_id = upload(sqlite_database, settings, "a.txt", b"one", purpose="evaluation")
    with pytest.raises(InvalidParameter, match="purpose 'calibration'") as caught:
        read_calibration_documents(CalibrationParams(dataset=file_id), settings)
    assert caught.value.param == "method.calibration.dataset"


def test_an_unknown_upload_is_named(sqlite_database: Database, settings: Settings) -> None:
    with pytest.raises(FileNotFound, match="file-fffffffffffffffffffffff0") as caught:
        read_calibration_documents(CalibrationParams(dataset="file-fffffffffffffffffffffff0"), settings)
    assert caught.value.param == "method.calibration.dataset"


def test_a_run_finds_an_upload_of_the_right_purpose(sqlite_database: Database, settings: Settings) -> None:
    run = Run(**{field.name: settings if field.name == "settings" else None for field in fields(Run)})
    matrix = upload(sqlite_database, settings, "imatrix.gguf", b"matrix", purpose="imatrix")
    texts = upload(sqlite_database, settings, "a.txt", b"one")
    param = "method.importance_matrix"
    assert run.upload(matrix, FilePurpose.IMATRIX, param=param).read_bytes() == b"matrix"
    with pytest.raises(InvalidParameter, match="purpose 'imatrix'") as caught:
        run.upload(texts, FilePurpose.IMATRIX, param=param)
    assert caught.value.param == param
