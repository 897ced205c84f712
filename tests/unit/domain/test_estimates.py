"""Estimates agree with what the serving host reserves."""

from __future__ import annotations

import json
from pathlib import Path

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
