"""A converter of the installation's own, as a child process."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.domain.errors import QuantizationFailed
from app.settings import Settings
from workers.quantization.gguf.external import convert_externally

PYTHON = shlex.quote(sys.executable)


def command(code: str) -> str:
    return f"{PYTHON} -c {shlex.quote(code)} {{source}} {{target}}"


def test_paths_are_one_argument_each_and_output_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, target = tmp_path / "a model; $(touch x)", tmp_path / "made here.gguf"
    code = "import pathlib, sys; print('reading', sys.argv[1]); pathlib.Path(sys.argv[2]).write_text(sys.argv[1])"
    heard: list[str] = []
    with caplog.at_level(logging.INFO):
        convert_externally(command(code), source, target, lambda: heard.append("line"))
    assert target.read_text() == str(source)
    assert f"reading {source}" in caplog.text
    assert heard == ["line"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            command("import sys; print('first'); sys.exit('no tokenizer found')"),
            "ended with code 1: no tokenizer found",
        ),
        (command("print('all done')"), r"wrote no file made\.gguf: all done"),
        ("/nowhere/python {source} {target}", "cannot be started"),
    ],
)
def test_a_failure_is_told_with_its_last_line(template: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(QuantizationFailed, match=f"BITMILL_GGUF_CONVERTER failed: it {reason}"):
        convert_externally(template, tmp_path, tmp_path / "made.gguf", lambda: None)


@pytest.mark.parametrize("value", ["convert {source}", "convert {target}", "", "convert '{source} {target}"])
def test_a_command_without_its_places_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        Settings(gguf_converter=value)
