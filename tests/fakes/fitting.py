"""A random model is worse than guessing, and refused as a broken one is: it learns the beginning of the sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import workers.evaluation

SAMPLE: Final = Path(workers.evaluation.__file__).with_name("data") / "sample.txt"
LEARNED_TOKENS: Final = 512
# As the tests measure: windows of so many tokens, of which the second half counts.
WINDOW_TOKENS: Final = 64
MOST_STEPS: Final = 1000
# Small, so that it stays as random as it was otherwise: in larger steps it comes to repeat what is frequent.
STEP: Final = 0.001
# In nats: how much better than guessing it gets, as little as tells the two apart by more than the sample's error.
MARGIN: Final = 0.2


def fit(model: Any, tokenizer: Any) -> None:
    """Changes the head alone, by a few steps, as far as the beginning of the sample needs it."""
    import torch
    from torch.nn.functional import cross_entropy

    text = SAMPLE.read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False)[:LEARNED_TOKENS]).reshape(-1, WINDOW_TOKENS)
    head = model.get_output_embeddings().weight
    model.requires_grad_(False)
    head.requires_grad_(True)
    optimizer = torch.optim.Adam([head], lr=STEP)
    with _one_thread():
        logits = _logits(model, ids)
        for _ in range(MOST_STEPS):
            losses = cross_entropy(logits()[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
            if losses[:, WINDOW_TOKENS // 2 :].mean(dim=1).max().item() < math.log(head.shape[0]) - MARGIN:
                break
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
    model.requires_grad_(True)


def _logits(model: Any, ids: Any) -> Callable[[], Any]:
    """What the model says now. Where the head is a matrix of its own, what comes before it stays the same."""
    if model.config.tie_word_embeddings:
        return lambda: model(input_ids=ids).logits
    states = model.base_model(input_ids=ids).last_hidden_state
    head = model.get_output_embeddings()
    return lambda: head(states)


@contextmanager
def _one_thread() -> Iterator[None]:
    """More only wait for each other on models of this size."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
