"""What a machine has and which methods run on it, found out in a child process.

The child (`workers.probe_process`) imports the ML libraries, which the worker that asks must not.
"""

from __future__ import annotations

import subprocess
import sys

from pydantic import BaseModel

from app.domain.hardware import Hardware

TIMEOUT_SECONDS = 180


class Probe(BaseModel, frozen=True):
    """`methods` maps each method to None, or to why it cannot run here."""

    hardware: Hardware
    methods: dict[str, str | None]


def probe_in_child() -> Probe:
    """Runs the probe in a fresh process. Raises subprocess.CalledProcessError or TimeoutExpired."""
    command = [sys.executable, "-m", "workers.probe_process"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=TIMEOUT_SECONDS)
    # Libraries may print while they are imported; the answer is the last line.
    return Probe.model_validate_json(done.stdout.splitlines()[-1])
