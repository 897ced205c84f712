"""SmoothQuant (arXiv:2211.10438): outliers move from activations, where they are hard to round, into weights."""

from __future__ import annotations

import torch


def smoothing_factors(inputs: torch.Tensor, weights: torch.Tensor, strength: float) -> torch.Tensor:
    """What each input channel is divided by and each weight's column multiplied with, (in,).

    `inputs` (in,) are the largest magnitudes that each channel was seen to have, `weights` (in,) those of its column
    over all layers that it feeds. `strength` 0 leaves the activations as they are, 1 gives the weights all.
    """
    factors = inputs.clamp(min=1e-5) ** strength / weights.clamp(min=1e-5) ** (1 - strength)
    # A channel that never speaks has nothing to give.
    return torch.where(inputs > 0, factors, 1.0).clamp(min=1e-5)
