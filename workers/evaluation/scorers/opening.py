"""Which way a safetensors checkpoint is opened: whole, or, where it does not fit into memory, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from workers.calibration.unpacked import is_compressed, unpacked_bytes
from workers.evaluation.scorers.backbone import BackboneScorer, lacks_head
from workers.evaluation.scorers.safetensors import SafetensorsScorer
from workers.evaluation.scorers.streamed import StreamedScorer
from workers.loading import free_memory_bytes

# Beside the weights: what loading takes for a moment, by their size, and logits and activations.
LOADING_FACTOR: Final = 1.2
WORKING_BYTES: Final = 2 * 1024**3


def open_artifact(folder: Path) -> SafetensorsScorer:
    """Quantized ones are opened whole, since their libraries know no other way; save those that are unpacked then."""
    checkpoint = inspect_checkpoint(folder, quantized=True)
    if lacks_head(checkpoint):
        return BackboneScorer(folder)
    is_whole = "quantization_config" in checkpoint.config and not is_compressed(checkpoint)
    return SafetensorsScorer(folder) if is_whole else open_checkpoint(checkpoint)


def open_checkpoint(checkpoint: Checkpoint) -> SafetensorsScorer:
    if lacks_head(checkpoint):
        return BackboneScorer(checkpoint.path)
    size = unpacked_bytes(checkpoint) if is_compressed(checkpoint) else checkpoint.weight_bytes
    needed = size * LOADING_FACTOR + WORKING_BYTES
    return SafetensorsScorer(checkpoint.path) if needed <= free_memory_bytes() else StreamedScorer(checkpoint)
