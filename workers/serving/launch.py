"""Becomes an engine that ends when the serving host does, with everything that it started.

Run as `python -m workers.serving.launch <parent pid> <command> [argument …]`, as the leader of a process group. The
request to the kernel outlives exec(2), so an engine needs to know nothing of it, and may even be a program that is not
ours. But the kernel ends the leader alone: what that had started, with the model in its memory, would stay. So a child
is left beside it that does nothing but end the group when the leader is gone.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from app.processes import die_with_parent


def main() -> None:
    parent_pid, *command = sys.argv[1:]
    die_with_parent(int(parent_pid))
    leader = os.getpid()
    if os.fork() == 0:
        outlive(leader)
    os.execvp(command[0], command)  # noqa: S606 -- the command was built by the host, for no shell


def outlive(leader: int) -> NoReturn:
    """Waits for the end of the process that started this one, and ends the rest of its group."""
    signal.signal(signal.SIGTERM, lambda number, frame: os.killpg(leader, signal.SIGKILL))
    die_with_parent(leader, signal.SIGTERM)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
