"""Scores safetensors checkpoints, plain or quantized, with transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers.loading import default_device, load_causal_lm

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


class SafetensorsScorer:
    """`with SafetensorsScorer(folder)` loads a model, on a GPU where there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> SafetensorsScorer:
        self._device = default_device()
        self._model = self._load()
        return self

    def _load(self) -> Any:
        return load_causal_lm(self.folder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._model

    @torch.inference_mode()
    def logits(self, window: Tokens, positions: slice) -> Logits:
        array: Logits = self._logits(torch.from_numpy(window)[None], positions)[0].float().cpu().numpy()
        return array

    def each_logits(self, windows: Sequence[Tokens], positions: slice) -> Iterator[Logits]:
        return (self.logits(window, positions) for window in windows)

    def _logits(self, ids: torch.Tensor, positions: slice) -> torch.Tensor:
        """(windows, positions, vocabulary)."""
        # Logits of the second half only: those of the whole window are twice the memory.
        kept = torch.arange(ids.shape[1], device=self._device)[positions]
        logits: torch.Tensor = self._model(ids.to(self._device), logits_to_keep=kept, use_cache=False).logits
        return logits

    @torch.inference_mode()
    def generate(self, prompt: Tokens, max_tokens: int, stop: frozenset[int]) -> list[int]:
        ids = torch.from_numpy(prompt)[None].to(self._device)
        made = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False,
            eos_token_id=sorted(stop) or None, pad_token_id=min(stop, default=0),
        )[0, len(prompt):].tolist()  # fmt: skip
        ends = [index for index, token in enumerate(made) if token in stop]
        return made[: ends[0]] if ends else made

    def goes_on_after(self, stop: frozenset[int]) -> frozenset[int]:
        """After none: the artifact carries the original's configuration, as `tokenize` says of the tokenizer."""
        return frozenset()

    def lacks_template(self, template: str) -> bool:
        return False

    def tokenize(self, text: str) -> None:
        """The artifact carries the original's tokenizer files, byte for byte."""
