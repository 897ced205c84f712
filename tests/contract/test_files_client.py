"""Files through OpenAI's own client against a running API, as programs use them."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from click.testing import CliRunner

from app.cli.launch import api_command, free_port
from app.cli.main import cli
from app.persistence.schema import migrate
from app.settings import Settings
from tests.fakes.installation import environment, folders, wait_until

LIMIT_BYTES = 300 * 1024**2
LARGE_BYTES = 256 * 1024**2


@pytest.fixture(scope="module")
def served_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(data_dir=tmp_path_factory.mktemp("files"), max_upload_bytes=LIMIT_BYTES, min_free_disk_bytes=0)
    migrate(settings.database)
    return settings


@pytest.fixture(scope="module")
def server(served_settings: Settings) -> Iterator[tuple[str, psutil.Process]]:
    """The API's address and its process."""
    port = free_port()
    # Files that arrive must not pass through the system's folder for temporary ones.
    variables = environment(served_settings) | {"TMPDIR": str(served_settings.data_folder / "no-such-folder")}
    process = subprocess.Popen(api_command("127.0.0.1", port), env=variables)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(url), "the API answers")
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def client(server: tuple[str, psutil.Process]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


def test_a_file_lives_and_dies_through_the_official_client(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "The miller carried the grain."}\n')
    created = client.files.create(file=path, purpose="fine-tune")
    assert (created.object, created.filename, created.purpose) == ("file", "texts.jsonl", "fine-tune")
    assert (created.bytes, created.status) == (path.stat().st_size, "processed")
    assert abs(created.created_at - time.time()) < 60
    assert client.files.retrieve(created.id) == created
    assert client.files.content(created.id).read() == path.read_bytes()
    assert client.files.wait_for_processing(created.id) == created
    deleted = client.files.delete(created.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (created.id, "file", True)
    with pytest.raises(openai.NotFoundError) as raised:
        client.files.retrieve(created.id)
    assert raised.value.code == "file_not_found"


def test_the_official_client_walks_through_the_pages(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{n}.txt", b"x"), purpose="evaluation").id for n in range(5)]  # type: ignore[arg-type]  # ours, beyond OpenAI's
    listed = [file.id for file in client.files.list(purpose="evaluation", limit=2)]
    assert listed == made[::-1]
    assert [file.id for file in client.files.list(purpose="evaluation", limit=2, order="asc")] == made
    for file_id in made:
        client.files.delete(file_id)


def test_a_large_file_passes_through_without_filling_memory(
    client: openai.OpenAI, server: tuple[str, psutil.Process]
) -> None:
    before = server[1].memory_info().rss
    with Zeros(LARGE_BYTES) as large:
        created = client.files.create(file=("large.bin", large), purpose="imatrix")  # type: ignore[arg-type]  # ours, beyond OpenAI's
    assert created.bytes == LARGE_BYTES
    assert _peak_memory_bytes(server[1]) - before < LARGE_BYTES / 4
    client.files.delete(created.id)


class Zeros(io.RawIOBase):
    """A large file that takes no disk."""

    def __init__(self, size_bytes: int) -> None:
        self.rest = self.size = size_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.rest = 0 if whence == os.SEEK_END else self.size - offset
        return self.tell()

    def tell(self) -> int:
        return self.size - self.rest

    def read(self, size: int = -1) -> bytes:
        count = min(self.rest, size if size >= 0 else self.rest)
        self.rest -= count
        return bytes(count)


def _peak_memory_bytes(process: psutil.Process) -> int:
    (line,) = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1]) * 1024


def test_a_client_in_the_middle_of_sending_still_reads_the_refusal(
    client: openai.OpenAI, served_settings: Settings
) -> None:
    with pytest.raises(openai.APIStatusError) as raised, Zeros(LIMIT_BYTES + 1024**2) as large:
        client.files.create(file=("large.bin", large), purpose="imatrix")  # type: ignore[arg-type]  # ours, beyond OpenAI's
    assert (raised.value.status_code, raised.value.code) == (413, "upload_too_large")
    assert folders(served_settings.files_folder) == []


def test_an_unstated_length_is_counted_as_it_comes(
    server: tuple[str, psutil.Process], served_settings: Settings
) -> None:
    def body() -> Iterator[bytes]:
        yield b'--xyz\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(LIMIT_BYTES // 1024**2 + 1):
            yield bytes(1024**2)

    headers = {"content-type": "multipart/form-data; boundary=xyz"}
    answer = httpx.post(f"{server[0]}/v1/files", content=body(), headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "upload_too_large")
    assert folders(served_settings.files_folder) == []


def test_a_broken_connection_leaves_nothing(server: tuple[str, psutil.Process], served_settings: Settings) -> None:
    host, port = server[0].removeprefix("http://").split(":")
    head = (
        "POST /v1/files HTTP/1.1\r\nhost: here\r\ncontent-length: 9000000\r\n"
        "content-type: multipart/form-data; boundary=xyz\r\n\r\n"
        '--xyz\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + bytes(3_000_000))
        wait_until(lambda: folders(served_settings.files_folder), "the upload has begun")
    wait_until(lambda: folders(served_settings.files_folder) == [], "its remains are removed", 20)
    assert httpx.get(f"{server[0]}/v1/files").json()["data"] == []


def test_the_command_line_uploads_lists_and_deletes(
    server: tuple[str, psutil.Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITMILL_URL", server[0])
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "model.zip"
    path.write_bytes(b"not yet a model")
    uploaded = CliRunner().invoke(cli, ["files", "upload", str(path), "--purpose", "model"])
    assert uploaded.exit_code == 0, uploaded.output
    file_id = uploaded.output.strip()
    listed = CliRunner().invoke(cli, ["files", "list", "--purpose", "model"])
    assert file_id in listed.output
    assert "model.zip" in listed.output
    deleted = CliRunner().invoke(cli, ["files", "delete", file_id])
    assert deleted.output.strip() == f"{file_id} deleted"
    again = CliRunner().invoke(cli, ["files", "delete", file_id])
    assert again.exit_code == 1
    assert "file_not_found" in again.output
