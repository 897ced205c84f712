"""Engines that start processes of their own, and a host that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from workers.serving.engines.base import EngineProcess
from workers.serving.process import LAUNCHER, RunningEngine, new_address

# Tells its own pid and that of a worker that would not notice its end.
ENGINE = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".part", "w") as file:
    file.write(f"{os.getpid()} {worker.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""
# Starts an engine as the serving host does.
HOST = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-m", "{LAUNCHER}", str(os.getpid()), *sys.argv[1:]], start_new_session=True)
time.sleep(600)
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("killed", ["host", "engine"])
def test_nothing_that_an_engine_started_outlives_it(killed: str, tmp_path: Path) -> None:
    told, group, scratch = tmp_path / "pids", set[int](), tmp_path / "scratch"
    scratch.mkdir()
    host = subprocess.Popen([sys.executable, "-c", HOST, str(scratch), sys.executable, "-c", ENGINE, str(told)])
    try:
        until(told.exists)
        engine, worker = map(int, told.read_text().split())
        group = {engine, worker, *(child.pid for child in psutil.Process(engine).children())}
        os.kill(host.pid if killed == "host" else engine, signal.SIGKILL)
        until(lambda: not any(map(is_running, group)))
        assert len(group) == 3
        assert not scratch.exists()
    finally:
        host.kill()
        host.wait()
        for pid in filter(is_running, group):
            os.kill(pid, signal.SIGKILL)


# Leaves a socket in its folder for temporary files, and tells its path.
LITTER = """
import pathlib, socket, sys, tempfile, time
path = pathlib.Path(tempfile.gettempdir()) / "a socket"
socket.socket(socket.AF_UNIX).bind(str(path))
told = pathlib.Path(sys.argv[1])
told.with_suffix(".part").write_text(str(path))
told.with_suffix(".part").rename(told)
time.sleep(600)
"""


@pytest.mark.anyio
async def test_what_a_killed_engine_leaves_in_its_temporary_folder_is_removed(tmp_path: Path) -> None:
    told = tmp_path / "path"
    argv = [sys.executable, "-c", LITTER, str(told)]
    command = EngineProcess(argv=argv, environment={}, health_path="/health", upstream_model="tiny")
    running = await RunningEngine.start(command, new_address(), tmp_path / "engine.log")
    try:
        await asyncio.to_thread(until, told.exists)
        left = Path(told.read_text())
        assert left.is_socket()
        assert left.parent != Path(tempfile.gettempdir())
    finally:
        await running.kill()
    assert not left.parent.exists()
