"""From the 32 bits of a training to the 16 that are stored.

A short training moves most weights by less than half a step of bfloat16. Rounded to the nearest, they would all be
where they were before it; rounded up or down by chance, each is right on average, and so are the sums that they go
into: https://arxiv.org/abs/1502.02551, §3.1.
"""

from __future__ import annotations

import zlib

import torch

DROPPED_BITS = 16


def to_bfloat16(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor (any shape, float32) in bfloat16; what bfloat16 holds exactly stays as it is.

    A value goes away from zero with the probability that its distance from the next value towards zero is of a step.
    The same name and values always give the same result.
    """
    chance = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randint(0, 1 << DROPPED_BITS, tensor.shape, generator=chance, dtype=torch.int32)
    bits = tensor.float().contiguous().view(torch.int32) + noise.to(tensor.device)
    return (bits >> DROPPED_BITS << DROPPED_BITS).view(torch.float32).to(torch.bfloat16)
