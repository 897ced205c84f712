"""Safetensors methods on every architecture that the tests can make, not on llama alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.domain.quantization.methods.gguf import ARCHITECTURES
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.contract.test_methods import FEW, prove, quantize
from tests.fakes.models import tiny_model

RECIPES: dict[str, dict[str, Any]] = {
    "nf4": {"type": "bitsandbytes", "quantization": "nf4"},
    "fp8": {"type": "fp8"},
    "int8-smooth-gptq": {"type": "int8", "smoothing": 0.5, "algorithm": "gptq", "calibration": FEW},
}
# Mean KL divergence, in nats, that the type's rounding explains on these random models, whose weights are large.
MOST_DIVERGENCE = {"nf4": 0.6, "fp8": 0.06, "int8-smooth-gptq": 0.06}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_an_artifact_of_any_family_passes_the_gate(architecture: str, settings: Settings, tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(tiny_model(architecture, tmp_path / "model"))
    divergence = {}
    for name, recipe in RECIPES.items():
        _, output = quantize(checkpoint, recipe, tmp_path / name)
        card = prove(checkpoint, tmp_path / name, output, settings)
        assert card.kl_divergence is not None
        divergence[name] = card.kl_divergence.value
    assert all(divergence[name] < most for name, most in MOST_DIVERGENCE.items()), divergence
