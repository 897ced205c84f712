"""Scores models for embeddings that have no head: their states, read with the model's own token embeddings.

That is what a tied head does. It makes the states of two such models comparable token by token; how well it predicts
text says nothing, since nobody trained it to.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from transformers import AutoConfig

from app.domain.errors import IncompatibleModel
from app.storage.checkpoints import Checkpoint
from app.storage.pooling import is_for_embeddings
from workers.evaluation.scorers.safetensors import SafetensorsScorer, Tokens
from workers.loading import load_backbone

HEADS: Final = ("lm_head.", "embed_out.", "output.")


def lacks_head(checkpoint: Checkpoint) -> bool:
    """Whether this is a model for embeddings, plain or quantized, that was saved without its head."""
    if not is_for_embeddings(checkpoint.path) or any(name.startswith(HEADS) for name in checkpoint.tensors):
        return False
    config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True)
    return checkpoint.architecture.endswith("Model") or not config.tie_word_embeddings


class BackboneScorer(SafetensorsScorer):
    """Raises IncompatibleModel where states and embeddings differ in size."""

    def _load(self) -> Any:
        model = load_backbone(self.folder)
        self._head = model.get_input_embeddings().weight
        if self._head.shape[1] != model.config.hidden_size:
            raise IncompatibleModel(
                f"the model has no head, and its embeddings of size {self._head.shape[1]} cannot read its states of "
                f"size {model.config.hidden_size}: what quantizing costs it cannot be measured",
                param="model",
            )
        return model

    def _logits(self, ids: torch.Tensor, positions: slice) -> torch.Tensor:
        states = self._model(input_ids=ids.to(self._device)).last_hidden_state[:, positions]
        return states.to(self._head.dtype) @ self._head.T

    def generate(self, prompt: Tokens, max_tokens: int, stop: frozenset[int]) -> list[int]:
        """Token by token from the beginning: such a model has no cache."""
        made: list[int] = []
        for _ in range(max_tokens):
            ids = np.concatenate([prompt, np.array(made, dtype=np.int64)])
            token = int(self.logits(ids, slice(len(ids) - 1, len(ids)))[0].argmax())
            if token in stop:
                break
            made.append(token)
        return made
