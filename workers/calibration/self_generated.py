"""Calibration text that the model writes itself, after LLM-QAT (arXiv:2305.17888): no data is needed.

Each window starts with one random token, takes the likeliest continuation for a few tokens, so that it settles
on something sensible, and is sampled from there on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from app.domain.quantization.calibration import CalibrationParams
from app.storage.checkpoints import Checkpoint
from workers.loading import load_causal_lm

GREEDY_TOKENS: Final = 4
BATCH: Final = 8


def generate_windows(
    source: Checkpoint, params: CalibrationParams, report: Callable[[float, str], None]
) -> npt.NDArray[np.int64]:
    """(samples, sequence_length) token ids; the same seed gives the same ones."""
    report(0.0, "loading the model to write calibration text")
    model = load_causal_lm(source.path)
    generator = torch.Generator().manual_seed(params.seed)
    batches = []
    for start in range(0, params.samples, BATCH):
        report(start / params.samples, "writing calibration text")
        count = min(BATCH, params.samples - start)
        batches.append(_write(model, count, params.sequence_length, generator))
    windows: npt.NDArray[np.int64] = torch.cat(batches).numpy()
    return windows


@torch.inference_mode()
def _write(model: Any, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """`count` continuations of random tokens: (count, length)."""
    tokens = torch.randint(model.config.get_text_config().vocab_size, (count, 1), generator=generator)
    cache = None
    while tokens.shape[1] < length:
        fresh = tokens if cache is None else tokens[:, -1:]
        output = model(fresh.to(model.device), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits = output.logits[:, -1].float().cpu()
        if tokens.shape[1] <= GREEDY_TOKENS:
            following = logits.argmax(dim=-1, keepdim=True)
        else:
            following = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
        tokens = torch.cat([tokens, following], dim=1)
    return tokens
