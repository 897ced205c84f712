"""Estimates agree with what the serving host reserves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from app.domain import estimates
from app.domain.artifacts import ArtifactFormat
from app.domain.memory import KERNEL_BYTES, RUNTIME_BYTES, shared_tokens
from app.domain.quantization.catalog import CATALOG, parse_method
from app.domain.quantization.sizes import BESIDE, StoredTensor
from app.settings import Settings
from workers.serving.engines import base, llama_cpp, transformers


def test_the_serving_hosts_figures_are_the_same(settings: Settings, tmp_path: Path) -> None:
    options = base.EngineOptions(public_name="m", context_length=100, slots=16)
    assert options.cache_tokens == shared_tokens(100, 16)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    engine = transformers.TransformersEngine(settings)
    assert engine.runtime_bytes(tmp_path) - engine.spec.runtime_bytes == KERNEL_BYTES
    assert {
        ArtifactFormat.GGUF: llama_cpp.LlamaCppEngine.spec.runtime_bytes,
        ArtifactFormat.SAFETENSORS: transformers.TransformersEngine.spec.runtime_bytes,
    } == {output: RUNTIME_BYTES[name] for output, name in estimates.ENGINES.items()}


def test_a_training_holds_weights_gradients_and_moments() -> None:
    tensor = StoredTensor(dtype="BF16", shape=(128, 256), size_bytes=2 * 128 * 256)
    model = estimates.ModelShape(
        architecture="LlamaForCausalLM", config={}, tensors={"model.layers.0.mlp.up_proj.weight": tensor}
    )
    spec, params = parse_method({"type": "qat"})
    weights = estimates.estimate_artifact(spec, params, model)
    assert weights.total_bytes == 128 * 256 // 2 + 128 * 8 * 2 + 16
    needed = estimates.estimate_job(spec, params, weights, model, None)
    held = needed["peak_memory_bytes"] - estimates.JOB_RUNTIME_BYTES - estimates.ACTIVATION_BYTES
    assert held == 16 * 128 * 256


def test_every_method_has_a_layout_and_a_speed() -> None:
    assert set(estimates.MEGABYTES_PER_SECOND) == set(CATALOG)
    assert set(BESIDE) | {"gguf"} == set(CATALOG)


# SmolLM2-135M: the shapes decide, and the peaks (MiB) are those that jobs on it were measured to have.
CONFIG = {
    "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 49152,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (49152, 576),
    **{f"model.layers.{layer}.mlp.{name}.weight": (1536, 576) for layer in range(30) for name in ("gate", "up")},
    **{f"model.layers.{layer}.mlp.down.weight": (576, 1536) for layer in range(30)},
    **{f"model.layers.{layer}.attn.{name}.weight": (576, 576) for layer in range(30) for name in ("q", "o")},
    **{f"model.layers.{layer}.attn.{name}.weight": (192, 576) for layer in range(30) for name in ("k", "v")},
}


@pytest.mark.parametrize(
    ("method", "measured_mib"),
    [
        ({"type": "none"}, 1236),
        ({"type": "gguf", "quantization": "Q8_0"}, 1200),
        ({"type": "gguf", "quantization": "Q4_K_M"}, 2712),
        ({"type": "gptq", "group_size": 64}, 1672),
    ],
)
def test_a_jobs_peak_is_that_of_the_larger_of_its_processes(method: dict[str, Any], measured_mib: int) -> None:
    tensors = {
        name: StoredTensor(dtype="BF16", shape=shape, size_bytes=2 * math.prod(shape)) for name, shape in SHAPES.items()
    }
    model = estimates.ModelShape(architecture="LlamaForCausalLM", config=CONFIG, tensors=tensors)
    spec, params = parse_method(method)
    job = estimates.estimate_job(spec, params, estimates.estimate_artifact(spec, params, model), model, None)
    assert job["peak_memory_bytes"] / 1024**2 == pytest.approx(measured_mib, rel=0.1)
