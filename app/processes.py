"""What processes do at their start: tie themselves to their parents, and keep what they loaded out of the way."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Has the kernel send this process a signal when the thread that started it ends, however that comes about.

    Linux only (prctl(2)); elsewhere a killed parent's children are found by their lost leases.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, number) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != parent_pid:  # it died before the kernel was asked
        os.kill(os.getpid(), number)


def keep_what_is_loaded() -> None:
    """Spares garbage collections the modules and tables that stay until the process ends: milliseconds for each.

    Once per process: what is frozen is never collected, and a second application may end before the process does.
    """
    if gc.get_freeze_count() == 0:
        gc.collect()
        gc.freeze()
