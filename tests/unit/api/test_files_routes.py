"""Uploading, listing, reading and deleting files over HTTP, and jobs on uploaded models before they are queued."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from app.domain.jobs import JobState
from app.persistence.jobs import JobRepository
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.checkpoints import bare_checkpoint
from tests.fakes.dispatcher import RecordingDispatcher
from tests.unit.api.conftest import AddWorker

FILES = "/v1/files"
JOBS = "/v1/quantization/jobs"
FORM = {"content-type": "multipart/form-data; boundary=xyz"}


def upload(client: TestClient, content: bytes = b"some text", name: str = "a.txt", purpose: str = "evaluation") -> Any:
    return client.post(FILES, files={"file": (name, content)}, data={"purpose": purpose})


def error_of(answer: Any) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def on_disk(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.files_folder.iterdir()) if settings.files_folder.exists() else []


def test_an_uploaded_file_has_every_field(client: TestClient, api_settings: Settings) -> None:
    answer = upload(client, b"some text")
    file = answer.json()
    assert answer.status_code == 200
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": 9,
        "created_at": file["created_at"],
        "filename": "a.txt",
        "purpose": "evaluation",
        "status": "processed",
        "bitmill": {"sha256": hashlib.sha256(b"some text").hexdigest()},
    }
    assert client.get(f"{FILES}/{file['id']}").json() == file
    assert client.get(FILES).json() == {
        "object": "list", "data": [file], "has_more": False, "first_id": file["id"], "last_id": file["id"],
    }  # fmt: skip
    assert on_disk(api_settings) == [file["id"]]


def test_the_content_comes_back_under_its_name(client: TestClient) -> None:
    content = bytes(range(256)) * 20_000  # longer than one piece
    file = upload(client, content, name="Zürich ‘1’.bin").json()
    assert file["filename"] == "Zürich ‘1’.bin"
    answer = client.get(f"{FILES}/{file['id']}/content")
    assert answer.content == content
    assert "filename*=utf-8''Z%C3%BCrich" in answer.headers["content-disposition"]


def test_the_purpose_may_come_before_or_after_the_file(client: TestClient) -> None:
    file = b'--xyz\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\n1\r\n--x\r\n'
    purpose = b'--xyz\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    for body in (file + purpose, purpose + file):
        answer = client.post(FILES, content=body + b"--xyz--\r\n", headers=FORM)
        assert (answer.status_code, answer.json()["bytes"]) == (200, len(b"1\r\n--x")), answer.text


def test_pages_in_both_orders(client: TestClient) -> None:
    ids = [upload(client).json()["id"] for _ in range(3)]
    page = client.get(FILES, params={"limit": 2}).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == ([ids[2], ids[1]], True)
    rest = client.get(FILES, params={"after": ids[1]}).json()
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    oldest = client.get(FILES, params={"order": "asc", "limit": 1}).json()
    assert [file["id"] for file in oldest["data"]] == [ids[0]]


def test_listing_takes_a_purpose(client: TestClient) -> None:
    file = upload(client, purpose="imatrix").json()
    upload(client)
    assert client.get(FILES, params={"purpose": "imatrix"}).json()["data"] == [file]
    assert error_of(client.get(FILES, params={"purpose": "odd"}))["param"] == "purpose"


def test_a_deleted_file_is_gone_with_its_content(client: TestClient, api_settings: Settings) -> None:
    file_id = upload(client).json()["id"]
    assert client.delete(f"{FILES}/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    assert on_disk(api_settings) == []
    for answer in (client.get(f"{FILES}/{file_id}"), client.delete(f"{FILES}/{file_id}")):
        assert (answer.status_code, error_of(answer)["code"]) == (404, "file_not_found")


def test_a_file_without_its_content_says_so(client: TestClient, api_settings: Settings) -> None:
    file_id = upload(client).json()["id"]
    (api_settings.files_folder / file_id).unlink()
    answer = client.get(f"{FILES}/{file_id}/content")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "file_not_found")
    assert client.delete(f"{FILES}/{file_id}").status_code == 200


@pytest.mark.parametrize(
    ("files", "data", "param", "said"),
    [
        ({"file": ("a.txt", b"")}, {"purpose": "evaluation"}, "file", "'a.txt' is empty"),
        ({"file": ("a.txt", b"x")}, {}, "purpose", "`purpose` is missing"),
        ({"other": ("a.txt", b"x")}, {"purpose": "evaluation"}, "other", "'other' is not supported"),
        ({"file": ("a.txt", b"x")}, {"purpose": "assistants"}, "purpose", "'assistants' is unknown"),
        ({"file": ("a.txt", b"x")}, {"purpose": "x" * 2000}, "purpose", "more than 1024 bytes"),
        ({"file": ("a.txt", b"x")}, {"purpose": "model"}, "file", "'a.txt' has purpose 'model'"),
        ({"file": ("a.txt", b"x")}, {"purpose": "model", "expires_after[anchor]": "x"}, "expires_after[anchor]", "not"),
    ],
)  # fmt: skip
def test_a_wrong_form_is_a_400_that_names_the_field(
    client: TestClient, api_settings: Settings, files: Any, data: Any, param: str, said: str
) -> None:
    answer = client.post(FILES, files=files, data=data)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)
    assert said in error_of(answer)["message"]
    assert on_disk(api_settings) == []


def test_a_form_without_a_file_names_it(client: TestClient) -> None:
    body = b'--xyz\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nmodel\r\n--xyz--\r\n'
    answer = client.post(FILES, content=body, headers=FORM)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "file")


def test_two_files_in_one_form_are_refused(client: TestClient, api_settings: Settings) -> None:
    answer = client.post(FILES, files=[("file", ("a", b"1")), ("file", ("b", b"2"))], data={"purpose": "imatrix"})
    assert (answer.status_code, error_of(answer)["param"]) == (400, "file")
    assert on_disk(api_settings) == []


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"{}", {"content-type": "application/json"}),
        (b"x", {}),
        (b"x", {"content-type": "multipart/form-data"}),
        (b"no form at all", FORM),
        (b'--xyz\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\ncut of', FORM),
        (b"", FORM),
        (b"x", {"content-type": f"multipart/form-data; boundary={'b' * 300}"}),
    ],
)
def test_what_is_no_whole_form_is_a_400(
    client: TestClient, api_settings: Settings, content: bytes, headers: dict[str, str]
) -> None:
    answer = client.post(FILES, content=content, headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_request")
    assert on_disk(api_settings) == []


def limited(client: TestClient, **values: Any) -> None:
    service = client.app.state.files  # type: ignore[attr-defined]  # TestClient's app is a FastAPI
    service.settings = service.settings.model_copy(update=values)


@pytest.mark.parametrize("size", [1_000_001, 5_000_000])
def test_a_file_over_the_limit_is_a_413(client: TestClient, api_settings: Settings, size: int) -> None:
    limited(client, max_upload_bytes=1_000_000)
    answer = upload(client, bytes(size))
    assert (answer.status_code, error_of(answer)["code"]) == (413, "upload_too_large")
    assert "BITMILL_MAX_UPLOAD_BYTES" in error_of(answer)["message"]
    assert on_disk(api_settings) == []
    assert upload(client, bytes(1_000_000)).status_code == 200


def test_an_upload_that_finds_no_room_is_a_507(client: TestClient, api_settings: Settings) -> None:
    limited(client, min_free_disk_bytes=10**18)
    answer = upload(client)
    assert (answer.status_code, error_of(answer)["code"]) == (507, "disk_full")
    assert on_disk(api_settings) == []


def test_a_row_that_cannot_be_committed_leaves_no_content(
    client: TestClient, api_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, file: object) -> None:
        raise RuntimeError("the database went away")

    monkeypatch.setattr("app.persistence.files.FileRepository.add", refuse)
    assert upload(client).status_code == 500
    assert on_disk(api_settings) == []


def test_a_job_on_an_uploaded_model_is_queued(
    client: TestClient, add_worker: AddWorker, dispatcher: RecordingDispatcher
) -> None:
    add_worker()
    file_id = upload(client, name="m.zip", purpose="model").json()["id"]
    answer = client.post(JOBS, json={"model": file_id, "method": {"type": "none"}})
    assert (answer.status_code, answer.json()["model"]) == (201, file_id)
    assert [job_id for job_id, _ in dispatcher.sent] == [answer.json()["id"]]


@pytest.mark.parametrize(
    ("purpose", "status", "code"), [("imatrix", 400, "invalid_parameter"), (None, 404, "file_not_found")]
)
def test_a_job_on_what_is_no_model_is_refused_before_queueing(
    client: TestClient,
    add_worker: AddWorker,
    dispatcher: RecordingDispatcher,
    purpose: str | None,
    status: int,
    code: str,
) -> None:
    add_worker()
    file_id = upload(client, purpose=purpose).json()["id"] if purpose else "file-0123456789abcdef01234567"
    answer = client.post(JOBS, json={"model": file_id, "method": {"type": "none"}})
    assert (answer.status_code, error_of(answer)["code"], error_of(answer)["param"]) == (status, code, "model")
    assert file_id in error_of(answer)["message"]
    assert dispatcher.sent == []


def test_a_file_that_a_job_needs_is_kept_until_the_job_ends(
    client: TestClient, add_worker: AddWorker, api_settings: Settings, sqlite_database: Database
) -> None:
    add_worker()
    file_id = upload(client, name="m.zip", purpose="model").json()["id"]
    job_id = client.post(JOBS, json={"model": file_id, "method": {"type": "none"}}).json()["id"]
    answer = client.delete(f"{FILES}/{file_id}")
    assert (answer.status_code, error_of(answer)["code"]) == (409, "file_in_use")
    assert job_id in error_of(answer)["message"]
    with sqlite_database.transaction() as session:
        JobRepository(session).transition(job_id, JobState.CANCELLED, message="cancelled")
    assert client.delete(f"{FILES}/{file_id}").status_code == 200


def test_an_unknown_file_in_a_method_is_refused_before_queueing(
    client: TestClient, add_worker: AddWorker, root: Path, dispatcher: RecordingDispatcher
) -> None:
    add_worker()
    bare_checkpoint(root / "tiny")
    method = {"type": "gguf", "calibration": {"dataset": "file-0123456789abcdef01234567"}}
    answer = client.post(JOBS, json={"model": "tiny", "method": method})
    assert (answer.status_code, error_of(answer)["code"]) == (404, "file_not_found")
    assert dispatcher.sent == []


def test_a_commit_whose_answer_is_lost_leaves_the_content(
    client: TestClient, api_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row may be there; what has none goes into quarantine later."""

    def break_off(self: object, file: object) -> None:
        raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr("app.persistence.files.FileRepository.add", break_off)
    assert upload(client).status_code == 503
    assert len(on_disk(api_settings)) == 1
