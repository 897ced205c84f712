"""Estimates agree with what the serving host reserves."""

from __future__ import annotations

from app.domain import estimates
from app.domain.artifacts import ArtifactFormat
from app.domain.quantization.catalog import CATALOG
from app.domain.quantization.sizes import BESIDE
from workers.serving import sizing
from workers.serving.engines import base, llama_cpp, transformers


def test_the_serving_hosts_figures_are_the_same() -> None:
    assert estimates.CACHED_CONTEXTS == base.CACHED_CONTEXTS
    assert estimates.BATCH_TOKENS == sizing.BATCH_TOKENS
    assert estimates.KERNEL_BYTES == transformers.GPTQMODEL_BYTES
    assert {
        ArtifactFormat.GGUF: llama_cpp.LlamaCppEngine.spec.runtime_bytes,
        ArtifactFormat.SAFETENSORS: transformers.TransformersEngine.spec.runtime_bytes,
    } == estimates.RUNTIME_BYTES


def test_every_method_has_a_layout_and_a_speed() -> None:
    assert set(estimates.MEGABYTES_PER_SECOND) == set(CATALOG)
    assert set(BESIDE) | {"gguf"} == set(CATALOG)
