"""Runs a Python module as `python -m` would, in a process that the kernel kills when its parent dies.

`python -m app.cli.tether PARENT_PID -m MODULE ARGUMENTS…`. A server that is killed outright must not leave
children behind that hold its port and its jobs.
"""

from __future__ import annotations

import os
import sys

from app.processes import die_with_parent


def main() -> None:
    parent_pid, *arguments = sys.argv[1:]
    die_with_parent(int(parent_pid))
    # The setting outlives exec(2), and the process keeps the name of what it runs.
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 -- arguments come from `bitmill up`


if __name__ == "__main__":
    main()
