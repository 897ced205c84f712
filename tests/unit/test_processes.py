"""What processes do at their start."""

from __future__ import annotations

import subprocess
import sys

FROZEN = """
import gc
from app.processes import keep_what_is_loaded
keep_what_is_loaded()
first = gc.get_freeze_count()
later = [[] for _ in range(1000)]
keep_what_is_loaded()
print(first > 1000, gc.get_freeze_count() - first)
"""


def test_what_is_loaded_is_frozen_once() -> None:
    # In a process of its own: what is frozen here would never be collected.
    done = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0"]
