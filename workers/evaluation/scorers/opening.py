"""Which way a safetensors checkpoint is opened: whole, or, where it does not fit into memory, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from app.storage.checkpoints import CONFIG, Checkpoint, inspect_checkpoint
from workers.evaluation.scorers.safetensors import SafetensorsScorer
from workers.evaluation.scorers.streamed import StreamedScorer
from workers.loading import free_memory_bytes

# Beside the weights: what loading takes for a moment, by their size, and logits and activations.
LOADING_FACTOR: Final = 1.2
WORKING_BYTES: Final = 2 * 1024**3


def open_artifact(folder: Path) -> SafetensorsScorer:
    """Quantized checkpoints are opened whole: their libraries know no other way."""
    is_plain = "quantization_config" not in json.loads((folder / CONFIG).read_text())
    return open_checkpoint(inspect_checkpoint(folder)) if is_plain else SafetensorsScorer(folder)


def open_checkpoint(checkpoint: Checkpoint) -> SafetensorsScorer:
    needed = checkpoint.weight_bytes * LOADING_FACTOR + WORKING_BYTES
    return SafetensorsScorer(checkpoint.path) if needed <= free_memory_bytes() else StreamedScorer(checkpoint)
