"""Scores a plain checkpoint that does not fit into memory: its weights are read as each module runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoConfig

from app.domain.errors import InsufficientMemory, UnsupportedArchitecture
from app.storage.checkpoints import Checkpoint
from workers.calibration.streamed_model import open_streamed
from workers.evaluation.scorers.safetensors import Logits, SafetensorsScorer, Tokens
from workers.quantization.streaming import model_dtype

# Windows that go through the model together share one reading of its weights; their logits must fit.
TOKENS_PER_PASS: Final = 2048


class StreamedScorer(SafetensorsScorer):
    """As slow as the disk: every pass, and every generated token, reads all the weights once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.path)
        self.checkpoint = checkpoint

    def _load(self) -> Any:
        try:
            return open_streamed(self.checkpoint, _dtype(self.checkpoint))
        except UnsupportedArchitecture as error:
            raise InsufficientMemory(
                f"the model's {self.checkpoint.weight_bytes} bytes of weights do not fit into the memory that is free, "
                f"and it cannot be measured layer by layer ({error.message}); run the job on a worker with more memory"
            ) from error

    @torch.inference_mode()
    def each_logits(self, windows: Sequence[Tokens], positions: slice) -> Iterator[Logits]:
        together = max(TOKENS_PER_PASS // len(windows[0]), 1)
        for start in range(0, len(windows), together):
            ids = torch.from_numpy(np.stack(windows[start : start + together]))
            for logits in self._logits(ids, positions):
                yield logits.float().cpu().numpy()


def _dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type that transformers would load the model in."""
    config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
    return config.dtype or model_dtype(checkpoint)
