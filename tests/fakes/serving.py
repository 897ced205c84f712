"""A serving host as a process of its own, for tests with real engines."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from app.cli.launch import free_port, serving_command
from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.persistence.artifacts import ArtifactRepository
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.installation import environment


def add_model(database: Database, name: str, kind: ArtifactKind, format_: ArtifactFormat, path: Path) -> None:
    stored = str(path) if kind is ArtifactKind.BASE else path.name
    row = ArtifactRow(
        id=f"artifact-{time.time_ns()}", name=name, kind=kind, format=format_, path=stored,
        source_fingerprint="f" * 64, key="k" * 64, versions={}, size_bytes=1, parameter_count=1,
        bits_per_weight=1.0, tensor_types={}, manifest_sha256="m" * 64, created_at=time.time(),
    )  # fmt: skip
    with database.transaction() as session:
        ArtifactRepository(session).add(row)


@contextmanager
def running_host(settings: Settings) -> Iterator[str]:
    """Its address, for as long as the block runs; then it and its engines are gone."""
    port = free_port()
    process = subprocess.Popen(serving_command("127.0.0.1", port), env=environment(settings))
    url = f"http://127.0.0.1:{port}"
    engines = []
    try:
        wait_for(url, process)
        yield url
        views = httpx.get(f"{url}/v1/deployments").json()["data"]
        engines = [view["pid"] for view in views if view["pid"] is not None]
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert [pid for pid in engines if psutil.pid_exists(pid)] == []


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the serving host ended"
        assert time.monotonic() < deadline, "the serving host did not start"
        try:
            if httpx.get(f"{url}/livez").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)


def error_of(raised: pytest.ExceptionInfo[openai.APIStatusError]) -> dict[str, Any]:
    error: dict[str, Any] = raised.value.response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
