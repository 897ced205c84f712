"""Becomes another program, after asking the kernel to kill it when its parent dies.

Run as `python -m workers.serving.launch <parent pid> <command> [argument …]`. The request to the kernel
outlives exec(2), so an engine needs to know nothing of it, and may even be a program that is not ours.
"""

from __future__ import annotations

import os
import sys

from app.processes import die_with_parent


def main() -> None:
    parent_pid, *command = sys.argv[1:]
    die_with_parent(int(parent_pid))
    os.execvp(command[0], command)  # noqa: S606 -- the command was built by the host, for no shell


if __name__ == "__main__":
    main()
