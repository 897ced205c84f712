"""What memory models may use."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from app.domain.hardware import Device
from workers.serving.machine import Machine

MIB = 1024**2


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A container with 64 MiB, 50 of which are used: 30 by cached files. The pod around it has no limit."""
    folder = tmp_path / "pod" / "container"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{64 * MIB}\n")
    (folder / "memory.current").write_text(f"{50 * MIB}\n")
    (folder / "memory.stat").write_text(f"anon {20 * MIB}\nactive_file {10 * MIB}\ninactive_file {20 * MIB}\n")
    (tmp_path / "pod" / "memory.max").write_text("max\n")
    (tmp_path / "pod" / "memory.current").write_text("1\n")
    (tmp_path / "pod" / "memory.stat").write_text("")
    return folder


@pytest.fixture
def machine(group: Path) -> Machine:
    made = Machine(cgroup=group)
    made.device = Device.CPU
    return made


def test_a_containers_limit_is_the_machines_size(machine: Machine) -> None:
    memory = machine.memory()
    assert (memory.total_bytes, memory.available_bytes) == (64 * MIB, 44 * MIB)


def test_the_limit_of_a_group_around_it_counts_too(machine: Machine, group: Path) -> None:
    (group.parent / "memory.max").write_text(f"{32 * MIB}\n")
    assert machine.memory().total_bytes == 32 * MIB


def test_without_a_limit_it_is_the_whole_machine(machine: Machine, group: Path) -> None:
    (group / "memory.max").write_text("max\n")
    assert machine.memory().total_bytes == psutil.virtual_memory().total
    assert Machine().memory().total_bytes <= psutil.virtual_memory().total
