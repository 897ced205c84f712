"""Ties child processes to their parents."""

from __future__ import annotations

import ctypes
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
