"""Loss and accuracy over the learned tokens of examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy

from workers.training.collation import IGNORED, Batch, Padding
from workers.training.examples import Example

# In one pass: bounds the memory that logits take, which is this times the vocabulary.
TOKENS_PER_PASS: Final = 2048


@dataclass(frozen=True)
class Measured:
    """Means over `tokens` learned tokens; the loss is in nats."""

    loss: float
    accuracy: float
    tokens: int


def measure(model: Any, examples: Sequence[Example], padding: Padding) -> Measured:
    """The mean over all learned tokens, whatever batches they are in."""
    loss = hits = 0.0
    tokens = 0
    with evaluating(model), torch.inference_mode():
        for batch in _batches(examples, padding):
            predicted, wanted = learned_logits(model, {name: rows.to(model.device) for name, rows in batch.items()})
            loss += float(cross_entropy(predicted.float(), wanted, reduction="sum"))
            hits += float((predicted.argmax(dim=-1) == wanted).sum())
            tokens += len(wanted)
    return Measured(loss / tokens, hits / tokens, tokens)


def learned_logits(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits (n, vocabulary) that predict a learned token of the batch, and these tokens (n,).

    The output head is run only at places where some example of the batch has one: logits of all places are by far the
    largest tensor of a training.
    """
    wanted = batch["labels"][:, 1:]
    learned = wanted != IGNORED
    places = learned.any(dim=0).nonzero()[:, 0]
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=places,
        use_cache=False,
    ).logits
    return logits[learned[:, places]], wanted[learned]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model without dropout.

    Layers of 4 bits stay as if in training: on some processors, bitsandbytes packs them anew in evaluation, and they
    could not be trained on.
    """
    was_training = model.training
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True
    try:
        yield
    finally:
        model.train(was_training)


def _batches(examples: Sequence[Example], padding: Padding) -> Iterator[Batch]:
    """Examples of like length together, as many as a pass takes."""
    waiting: list[Example] = []
    for example in sorted(examples, key=len):
        # The newest is the longest: all others are padded to it.
        if waiting and len(example) * (len(waiting) + 1) > TOKENS_PER_PASS:
            yield padding(waiting)
            waiting = []
        waiting.append(example)
    if waiting:
        yield padding(waiting)
