"""The child process of a job: what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.child import Child

# Writes a file where temporary ones go, and says where.
LITTER = """
import sys, tempfile
from workers.child import Channel
with tempfile.NamedTemporaryFile(delete=False) as file:
    file.write(b"left")
channel = Channel(int(sys.argv[1]))
channel.send({"path": file.name})
channel.receive()
"""


def test_temporary_files_go_with_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "litter.py").write_text(LITTER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    with Child("litter", {}, log=tmp_path / "log") as child:
        told = child.receive(timeout_seconds=30)
        assert told is not None
        left = Path(told["path"])
        assert left.read_bytes() == b"left"
    assert not left.exists()
    assert not left.parent.exists()
