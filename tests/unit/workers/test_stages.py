"""Stages: built once, shared, and removed only when nobody uses them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workers.stages import StageStore


def fill(folder: Path) -> None:
    (folder / "data").write_bytes(bytes(1000))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_recipe_is_built_once_for_all_who_ask(tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.1)
        fill(folder)

    # A store each, as processes have: what one holds is not the other's to know.
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: StageStore(tmp_path, 10**6).get("gguf", {"a": 1}, build), range(4)))
    assert len(built) == 1
    assert len(set(found)) == 1
    assert (found[0] / "data").stat().st_size == 1000


def test_another_recipe_is_another_stage(tmp_path: Path) -> None:
    store = StageStore(tmp_path, 10**6)
    assert store.get("gguf", {"a": 1}, fill) != store.get("gguf", {"a": 2}, fill)


def test_a_failed_build_leaves_no_stage(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError("no room")

    store = StageStore(tmp_path, 10**6)
    with pytest.raises(OSError, match="no room"):
        store.get("gguf", {}, fail)
    assert names(tmp_path) == []
    assert (store.get("gguf", {}, fill) / "data").exists()


def test_the_stage_that_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    first = StageStore(tmp_path, 2500)
    old = first.get("old", {}, fill)
    del first
    _release_all(tmp_path)
    for name in ("middle", "new"):
        StageStore(tmp_path, 2500).get(name, {}, fill)
        _release_all(tmp_path)
        time.sleep(0.02)
    assert not old.exists()
    assert [name.partition("-")[0] for name in names(tmp_path)] == ["middle", "new"]


def test_a_stage_in_use_is_never_removed(tmp_path: Path) -> None:
    store = StageStore(tmp_path, 500)
    used = store.get("used", {}, fill)
    other = StageStore(tmp_path, 500)
    other.get("other", {}, fill)
    assert used.exists()


def test_what_a_crash_left_of_a_build_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".gguf-0123.partial"
    left.mkdir()
    fill(left)
    StageStore(tmp_path, 10**6).get("other", {}, fill)
    assert not left.exists()


def test_two_processes_may_make_room_at_once(tmp_path: Path) -> None:
    for number in range(20):
        StageStore(tmp_path, 10**6).get("old", {"number": number}, fill)
    _release_all(tmp_path)
    with ThreadPoolExecutor(4) as threads:
        stores = [StageStore(tmp_path, 500) for _ in range(4)]
        found = list(threads.map(lambda pair: pair[1].get("new", {"number": pair[0]}, fill), enumerate(stores)))
    assert all((stage / "data").exists() for stage in found)
    assert not [name for name in names(tmp_path) if name.startswith("old")]


def _release_all(folder: Path) -> None:
    """What the kernel does when a process ends: its locks go with its descriptors."""
    import gc
    import os

    gc.collect()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = entry.readlink()
        except FileNotFoundError:
            continue
        if target.parent == folder and target.name.endswith(".lock"):
            os.close(int(entry.name))
