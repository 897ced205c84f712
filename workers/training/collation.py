"""Examples to tensors: padded on the right to the longest of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from workers.training.examples import Example

# What the loss leaves out: https://pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
IGNORED: Final = -100
Batch = dict[str, torch.Tensor]


class Padding:
    """Collates examples to `input_ids`, `attention_mask` and `labels`, each (batch, longest), int64."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, examples: Sequence[Example]) -> Batch:
        shape = (len(examples), max(len(example) for example in examples))
        ids = torch.full(shape, self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, IGNORED, dtype=torch.int64)
        for row, example in enumerate(examples):
            tokens = torch.from_numpy(example.input_ids).long()
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            labels[row, : len(tokens)] = torch.where(torch.from_numpy(example.carries_loss), tokens, IGNORED)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def padding_of(tokenizer: object) -> Padding:
    """With the tokenizer's padding token, or any other: attention and loss leave it out."""
    pad = getattr(tokenizer, "pad_token_id", None)
    eos = getattr(tokenizer, "eos_token_id", None)
    return Padding(pad if pad is not None else eos if eos is not None else 0)
