"""AWQ's clipping bounds by second moments, against the library's own search token by token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from workers.quantization.algorithms.clipping import best_bounds, moments_of_groups, second_moments

GROUP = 16


def a_layer() -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (64, 48) with outliers and inputs (300, 48) of unequal size."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 48, generator=generator) ** 3
    return weight, torch.randn(300, 48, generator=generator) * torch.linspace(0.1, 3, 48)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_bounds_are_those_that_the_library_finds(symmetric: bool) -> None:
    processor_class = pytest.importorskip("gptqmodel.looper.awq_processor").AWQProcessor
    library_function = processor_class._compute_best_clip
    from workers.quantization.methods.awq import compute_best_clip

    processor = SimpleNamespace(qcfg=SimpleNamespace(group_size=GROUP, sym=symmetric, bits=4))
    processor._pseudo_quantize_tensor_into = processor_class._pseudo_quantize_tensor_into.__get__(processor)
    weight, inputs = a_layer()
    theirs = library_function(processor, weight, inputs)
    ours = compute_best_clip(processor, weight, inputs)
    assert ours.shape == theirs.shape == (64, 3, 1)
    assert torch.allclose(ours, theirs)
    assert (ours.squeeze(-1) < weight.unflatten(1, (-1, GROUP)).abs().amax(dim=-1)).any()


def test_many_rows_and_tokens_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = a_layer()

    def found() -> torch.Tensor:
        moments = second_moments(inputs, GROUP, torch.device("cpu"))
        return best_bounds(weight, moments, lambda groups: (groups * 2).round() / 2, steps=10, least=0.5)

    whole = found()
    monkeypatch.setattr("workers.quantization.algorithms.clipping.ROWS_PER_PASS", 24)
    monkeypatch.setattr("workers.quantization.algorithms.clipping.TOKENS_PER_PASS", 64)
    assert torch.allclose(found(), whole)


def test_the_type_stays() -> None:
    weight, inputs = a_layer()
    moments = second_moments(inputs.bfloat16(), GROUP, torch.device("cpu"))
    bounds = best_bounds(weight.bfloat16(), moments, torch.round, steps=4, least=0.5)
    assert bounds.dtype is torch.bfloat16


def test_the_moments_of_groups_are_blocks_of_those_of_all_columns() -> None:
    _, inputs = a_layer()
    moments = moments_of_groups(inputs.T @ inputs, GROUP)
    assert torch.allclose(moments, second_moments(inputs, GROUP, torch.device("cpu")), rtol=1e-4, atol=1e-3)
