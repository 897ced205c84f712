"""Becomes an engine that ends when the serving host does, with everything that it started.

Run as `python -m workers.serving.launch <parent pid> <scratch folder> <command> [argument …]`, as the leader of a
process group. The request to the kernel outlives exec(2), so an engine needs to know nothing of it, and may even be a
program that is not ours. But the kernel ends the leader alone: what that had started, with the model in its memory,
would stay. So a child is left beside it that does nothing but remove the scratch folder and end the group when the
leader is gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from typing import NoReturn

from app.processes import die_with_parent


def main() -> None:
    parent_pid, scratch, *command = sys.argv[1:]
    die_with_parent(int(parent_pid))
    leader = os.getpid()
    if os.fork() == 0:
        outlive(leader, scratch)
    os.execvp(command[0], command)  # noqa: S606 -- the command was built by the host, for no shell


def outlive(leader: int, scratch: str) -> NoReturn:
    """Waits for the end of the process that started this one, and ends the rest of its group."""

    def end(number: int, frame: object) -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        os.killpg(leader, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    die_with_parent(leader, signal.SIGTERM)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
