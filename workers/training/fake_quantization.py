"""Linear layers that compute with rounded weights and inputs, and learn as if they did not.

What is rounded to is the grid that is stored: scales and codes come from the code that packs the artifact, and inputs
are rounded by the function that the artifact's loader calls. Gradients pass the rounding unchanged (the
straight-through estimator, arXiv:1308.3432).
"""

from __future__ import annotations

from typing import Any, Final

import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStrategy,
    QuantizationType,
)
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

from app.domain.fine_tuning import Scheme
from workers.quantization.algorithms.grid import Grid
from workers.quantization.compressed import grid_of, integer_scheme, with_format

# In what the artifact computes: its scales, and what its codes mean, are stored and read in this type.
STORED: Final = torch.bfloat16


def scheme_of(kind: Scheme, group_size: int) -> QuantizationScheme:
    """W4A16, or W4A8 with a scale per token that is found as it comes."""
    weights = integer_scheme(4, group_size=group_size, symmetric=True)
    if kind is Scheme.INT4:
        return weights
    inputs = QuantizationArgs(
        num_bits=8, type=QuantizationType.INT, strategy=QuantizationStrategy.TOKEN, symmetric=True, dynamic=True
    )
    return with_format(QuantizationScheme(targets=["Linear"], weights=weights.weights, input_activations=inputs))


class RoundedWeight(torch.autograd.Function):
    """A weight (out, in) as its codes mean it, in `STORED`."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, scheme: QuantizationScheme) -> torch.Tensor:
        ctx.dtype = weight.dtype
        grid = grid_of(weight, scheme, STORED)
        return grid.restore(grid.round(weight.float())).to(STORED)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].to(ctx.dtype), None


class RoundedInput(torch.autograd.Function):
    """Inputs (batch, length, in), in `STORED`, as the artifact's loader rounds them."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, arguments: QuantizationArgs) -> torch.Tensor:
        ctx.dtype = inputs.dtype
        stored = inputs.to(STORED)
        scale, zero_point = compute_dynamic_scales_and_zp(stored, arguments, None)
        return fake_quantize(stored, scale, zero_point, arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0].to(ctx.dtype), None


class FakeQuantizedLinear(torch.nn.Linear):
    """A Linear with the same parameters as the one it stands for."""

    scheme: QuantizationScheme

    @classmethod
    def of(cls, linear: torch.nn.Linear, scheme: QuantizationScheme) -> FakeQuantizedLinear:
        made = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        made.scheme = scheme
        return made.train(linear.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        arguments = self.scheme.input_activations
        inputs = RoundedInput.apply(input, arguments) if arguments is not None else input.to(STORED)
        bias = None if self.bias is None else self.bias.to(STORED)
        product = torch.nn.functional.linear(inputs, RoundedWeight.apply(self.weight, self.scheme), bias)
        return product.to(input.dtype)

    def grid(self) -> tuple[torch.Tensor, Grid]:
        """The codes (out, in) that the weight is rounded to, and what they mean."""
        weight = self.weight.detach()
        grid = grid_of(weight, self.scheme, STORED)
        return grid.round(weight.float()), grid
