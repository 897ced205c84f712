"""Each GPU belongs to one worker, whatever kind of GPU it is and however many workers there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workers import devices
from workers.devices import Card, claim_card, list_cards

CARDS = [Card("GPU-aaaa", "0"), Card("GPU-bbbb", "1")]


def test_each_worker_has_a_card_of_its_own_and_the_last_one_none(tmp_path: Path) -> None:
    first, second, third = (claim_card(tmp_path, CARDS) for _ in range(3))
    assert [claim.card for claim in (first, second, third)] == [*CARDS, None]
    assert first.environment() == {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    # Shown none, rather than all.
    assert third.environment() == {"CUDA_VISIBLE_DEVICES": ""}
    first.release()
    assert claim_card(tmp_path, CARDS).card == CARDS[0]


HOLD = """
import sys
from pathlib import Path
from workers.devices import Card, claim_card
print(claim_card(Path(sys.argv[1]), [Card("GPU-aaaa", "0")]).card, flush=True)
sys.stdin.read()
"""


def test_a_worker_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert "GPU-aaaa" in other.stdout.readline()
        assert claim_card(tmp_path, CARDS[:1]).card is None
        other.kill()
        other.wait()
    assert claim_card(tmp_path, CARDS[:1]).card == CARDS[0]


class NVMLError(Exception):
    """The library's."""


def fake_nvml(**changed: Any) -> SimpleNamespace:
    """The driver's library on a machine with two cards, the second of which is partitioned."""

    def most_parts(handle: int) -> int:
        if handle == 0:
            raise NVMLError
        return 7

    def part(handle: int, number: int) -> bytes:
        if number > 1:
            raise NVMLError
        return f"MIG-{number}".encode()

    functions = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": lambda uuid: f"the card {uuid}",
        "nvmlDeviceGetUUID": lambda handle: {0: "GPU-aaaa", 1: "GPU-bbbb"}.get(handle, handle),
        "nvmlDeviceGetMaxMigDeviceCount": most_parts,
        "nvmlDeviceGetMigDeviceHandleByIndex": part,
    }
    return SimpleNamespace(NVMLError=NVMLError, **functions | changed)


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["0", "MIG-0", "MIG-1"]),
        ("0", ["0"]),
        ("GPU-aa", ["0"]),
        ("MIG-1,0", ["0", "MIG-1"]),
        ("", []),
        ("-1", []),
    ],
)
def test_cards_and_partitions_are_found_as_far_as_they_are_shown(
    visible: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "pynvml", fake_nvml())
    assert [card.shown_as for card in list_cards(visible)] == found


def test_what_is_asked_of_the_driver_is_asked_of_visible_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "pynvml", fake_nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    with devices.opened_cards() as cards:
        assert cards == ["the card MIG-1"]


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise NVMLError

    monkeypatch.setattr(devices, "pynvml", fake_nvml(nvmlInit=no_driver))
    assert list_cards(None) == []


def test_the_command_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-m", "workers.devices"], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(list_cards(None))
