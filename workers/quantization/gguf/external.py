"""Conversion by a program of the installation's own, for architectures that the built-in converter does not know."""

from __future__ import annotations

import logging
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from app.domain.errors import QuantizationFailed

log = logging.getLogger(__name__)


def convert_externally(command: str, source: Path, target: Path, heard: Callable[[], None]) -> None:
    """Runs the command, whose {source} and {target} are filled in, until it has written `target`.

    Its output goes to this process's log, and `heard` is called at each line. Raises QuantizationFailed with the last
    of them.
    """
    # Split first and filled in afterwards: a path is one argument, whatever its characters.
    arguments = [_fill_in(part, source, target) for part in shlex.split(command)]
    last = "it said nothing"
    try:
        with subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace",
        ) as process:  # fmt: skip
            for line in process.stdout or ():
                log.info("%s", line.rstrip())
                heard()
                last = line.strip() or last
    except OSError as error:
        raise _failure(f"it cannot be started ({error})") from error
    if process.returncode != 0:
        raise _failure(f"it ended with code {process.returncode}: {last}")
    if not target.is_file():
        raise _failure(f"it wrote no file {target.name}: {last}")


def _fill_in(part: str, source: Path, target: Path) -> str:
    return part.replace("{source}", str(source)).replace("{target}", str(target))


def _failure(reason: str) -> QuantizationFailed:
    return QuantizationFailed(f"the converter of BITMILL_GGUF_CONVERTER failed: {reason}")
