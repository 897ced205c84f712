"""Vectors of texts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from app.storage.pooling import Pooling
from workers.loading import load_backbone

BATCH_TEXTS = 16


class EmbeddingModel:
    """Loads a checkpoint. Texts of about the same length are worked on together, one batch at a time."""

    def __init__(self, folder: Path, pooling: Pooling, *, context_length: int, dtype: str = "auto") -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model: Any = load_backbone(folder, dtype)
        self.pooling = pooling
        own = getattr(self.model.config, "max_position_embeddings", context_length)
        self.context_length = min(context_length, own)
        self.vocabulary_size: int = self.model.config.vocab_size
        self.passes = 0
        self._turn = threading.Lock()

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def vectors(self, inputs: Sequence[list[int]]) -> list[list[float]]:
        """One vector for each list of tokens, in their order."""
        order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]))
        found: dict[int, list[float]] = {}
        with self._turn:
            for start in range(0, len(order), BATCH_TEXTS):
                batch = order[start : start + BATCH_TEXTS]
                found |= zip(batch, self._batch([inputs[index] for index in batch]), strict=True)
        return [found[index] for index in range(len(inputs))]

    @torch.inference_mode()
    def _batch(self, inputs: list[list[int]]) -> list[list[float]]:
        self.passes += 1
        longest = max(map(len, inputs))
        device = self.model.device
        # What is padded with does not matter: the mask hides it.
        tokens = torch.tensor([given + [0] * (longest - len(given)) for given in inputs], device=device)
        mask = torch.tensor([[1] * len(given) + [0] * (longest - len(given)) for given in inputs], device=device)
        states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        pooled = pool(states, mask, self.pooling)
        vectors: list[list[float]] = pooled.tolist()
        return vectors


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """From `states` [texts, tokens, size], padded at the end where `mask` [texts, tokens] is 0, to [texts, size]."""
    if pooling.mode == "cls":
        pooled = states[:, 0]
    elif pooling.mode == "lasttoken":
        pooled = states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]
    else:
        weights = mask.unsqueeze(-1).float()
        pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
    return torch.nn.functional.normalize(pooled, dim=-1) if pooling.normalize else pooled
