"""Quantized models without their heads, as embeddings use them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.domain.quantization.catalog import parse_method
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.openai_requests import ARTIFACTS
from tests.fakes.run import RecordingRun
from workers.loading import load_backbone, load_causal_lm
from workers.quantization.registry import load_method

TOKENS = torch.tensor([list(range(20, 40))])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    return tiny_llama(folder, hidden_size=256, intermediate_size=512, initializer_range=0.15)


@pytest.mark.parametrize("artifact", ["bf16", "int8", "fp8-e5m2", "int4-w4a16", "gptq-mixed"])
def test_the_backbone_gives_the_states_that_the_head_reads(artifact: str, source: Path, tmp_path: Path) -> None:
    spec, params = parse_method(ARTIFACTS[artifact])
    checkpoint = inspect_checkpoint(source)
    load_method(spec.name).quantize(checkpoint, tmp_path, params, RecordingRun(checkpoint, tmp_path / "cache"))
    whole, backbone = load_causal_lm(tmp_path), load_backbone(tmp_path)
    assert not hasattr(backbone, "lm_head")
    with torch.inference_mode():
        expected = whole(TOKENS, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(backbone(TOKENS).last_hidden_state, expected)
