"""What a reader has to know to read the figures."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]


def how_measured(comparison: Json) -> list[str]:
    """Where and how, in sentences."""
    hardware = comparison["hardware"]
    made = datetime.fromtimestamp(comparison["created_at"], tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = [f"Measured from {made} on, on the text {comparison['dataset']}: {_windows(comparison)}."]
    if hardware is not None:
        gpus = ", ".join(gpu["name"] for gpu in hardware["gpus"])
        memory = f"{hardware['memory_bytes'] / 1e9:.0f} GB of memory"
        lines.append(f"Machine: {hardware['cores']} cores of {hardware['processor']}, {memory}, {gpus or 'no GPU'}.")
    lines.append(
        "KL divergence is that of the original from the model, in nats per token, the original's own being 0; what "
        "stands after ± is one standard error. Rates are of one run each, and vary with what else the machine does."
    )
    return lines


def _windows(comparison: Json) -> str:
    return f"up to {comparison['samples']} windows of {comparison['context_length']} tokens, the second half scored"
