"""Which of the machine's GPUs a worker has for itself.

A worker claims one at its start and shows its jobs no other: so two jobs never share one, however many workers there
are. The claim is a lock in the data folder, named after the GPU: workers in containers, and on other machines, see the
same folder, and the kernel releases the lock of a worker that dies. A partition (MIG) is a GPU of its own.
`python -m workers.devices` prints how many there are.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pynvml

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
# CUDA counts the fastest first unless it is told to count as the driver does.
ORDER: Final = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@dataclass(frozen=True, slots=True)
class Card:
    """`uuid` is the driver's; `shown_as` is what makes CUDA show this one alone."""

    uuid: str
    shown_as: str


class Claim:
    """A card that is this process's until it ends; None: it has none, though others may."""

    def __init__(self, card: Card | None, descriptor: int | None) -> None:
        self.card = card
        self._descriptor = descriptor

    def environment(self) -> dict[str, str]:
        """What children need, to see this card and no other."""
        return {VISIBLE: self.card.shown_as if self.card else "", **(ORDER if self.card else {})}

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def claim_card(folder: Path, cards: Sequence[Card]) -> Claim:
    """The first card that no other worker has claimed in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for card in cards:
        descriptor = os.open(folder / f"{card.uuid}.lock", os.O_CREAT | os.O_RDONLY, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return Claim(card, descriptor)
    return Claim(None, None)


def list_cards(visible: str | None) -> list[Card]:
    """Those of this machine that `visible`, the variable CUDA_VISIBLE_DEVICES, leaves; all where it is not set."""
    return [card for card in _all_cards() if _is_visible(card, visible)]


@contextmanager
def opened_cards() -> Iterator[list[Any]]:
    """The driver's handles of the cards and partitions that this process may use, for as long as the block lasts."""
    with nvml():
        cards = list_cards(os.environ.get(VISIBLE))
        yield [pynvml.nvmlDeviceGetHandleByUUID(card.uuid) for card in cards]


def _is_visible(card: Card, visible: str | None) -> bool:
    if visible is None:
        return True
    wanted = [part.strip() for part in visible.split(",") if part.strip()]
    return any(part == card.shown_as or card.uuid.startswith(part) for part in wanted)


def _all_cards() -> Iterator[Card]:
    with nvml() as count:
        for index in range(count):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            parts = list(_partitions(handle))
            # By number where that will do: not every library understands names.
            yield from parts or [Card(_text(pynvml.nvmlDeviceGetUUID(handle)), str(index))]


def _partitions(handle: Any) -> Iterator[Card]:
    try:
        most = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except pynvml.NVMLError:  # no such card
        return
    for number in range(most):
        try:
            uuid = _text(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)))
        except pynvml.NVMLError:  # fewer were made than there may be
            continue
        yield Card(uuid, uuid)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextmanager
def nvml() -> Iterator[int]:
    """NVIDIA's management library, opened; yields the number of GPUs, 0 where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield 0
        return
    try:
        yield int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


if __name__ == "__main__":
    print(len(list_cards(os.environ.get(VISIBLE))))  # noqa: T201 -- a command's answer
