"""The energy that the GPUs of this process have used, where they report it."""

from __future__ import annotations

import pynvml

from workers.devices import opened_cards


def gpu_joules() -> float | None:
    """Since the driver was loaded, all of them together; None without a GPU that counts (Volta and later do)."""
    with opened_cards() as cards:
        if not cards:
            return None
        try:
            return sum(int(pynvml.nvmlDeviceGetTotalEnergyConsumption(card)) for card in cards) / 1000
        except pynvml.NVMLError:  # one that does not report it
            return None
