"""Every architecture's conversion against transformers: the same logits, tokens, ends and template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import IncompatibleModel
from app.domain.quantization.methods.gguf import ARCHITECTURES
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import TEXT
from tests.fakes.models import tiny_model
from tests.fakes.run import RecordingRun
from tests.fakes.tokenizers import STYLES
from workers.evaluation.proof import prove_artifact
from workers.evaluation.scorers.gguf import GgufScorer
from workers.evaluation.scorers.safetensors import SafetensorsScorer
from workers.quantization.gguf.converter import convert
from workers.quantization.gguf.families import FAMILIES

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN_ROPE = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256,
}  # fmt: skip
LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.1 * n for n in range(8)],
    "long_factor": [2.0 + 0.5 * n for n in range(8)],
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in sorted(FAMILIES)},
    "llama3 scaling": ("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE}),
    "linear scaling": ("LlamaForCausalLM", {"rope_parameters": LINEAR_ROPE}),
    "yarn scaling": ("Qwen3ForCausalLM", {"rope_parameters": YARN_ROPE}),
    "llama biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "tied qwen": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "gemma3 linear": (
        "Gemma3ForCausalLM",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            }
        },
    ),
    "phi3 longrope, short": (
        "Phi3ForCausalLM",
        {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 512, "max_position_embeddings": 2048},
    ),
    "phi3 longrope, long": (
        "Phi3ForCausalLM",
        {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 32, "max_position_embeddings": 2048},
    ),
    "phi3 partial": (
        "Phi3ForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
}
CONTEXT = 64


def converted(architecture: str, folder: Path, file_type: str = "F32", **changes: Any) -> tuple[Path, Path]:
    """A tiny model's folder, and the GGUF file made of it."""
    source = tiny_model(architecture, folder / "model", **changes)
    (folder / "artifact").mkdir()
    target = folder / "artifact" / "model.gguf"
    checkpoint = inspect_checkpoint(source)
    convert(checkpoint, target, file_type, RecordingRun(checkpoint, folder / "stages"))
    return source, target


def test_the_catalog_names_what_the_converter_knows() -> None:
    assert set(FAMILIES) == ARCHITECTURES


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    architecture, changes = VARIANTS[name]
    source, target = converted(architecture, tmp_path, **changes)
    window = np.random.default_rng(0).integers(10, 600, CONTEXT)
    with SafetensorsScorer(source) as original:
        expected = original.logits(window, slice(0, CONTEXT))
    with GgufScorer(target, CONTEXT) as scorer:
        found = scorer.logits(window, slice(0, CONTEXT))
    # llama.cpp keeps keys and values in 16 bits; nothing else is rounded.
    assert np.abs(found - expected).max() < 0.02 * expected.std()


@pytest.mark.parametrize("style", STYLES)
def test_text_is_cut_and_ended_alike(style: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source, target = converted("LlamaForCausalLM", tmp_path, style=style)
    tokenizer = AutoTokenizer.from_pretrained(source)
    texts = [*TEXT, "I'll say: HELLO world's  end\n\n\tcafé №7 1234567 — 日本語 🚀🚀 don't", " leading and trailing "]
    with GgufScorer(target, CONTEXT) as scorer:
        for text in texts:
            assert scorer.tokenize(text).tolist() == tokenizer.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_every_architecture_passes_the_gate(architecture: str, settings: Settings, tmp_path: Path) -> None:
    source, target = converted(architecture, tmp_path, dtype="bfloat16", file_type="BF16")
    card = prove_artifact(
        inspect_checkpoint(source), "f" * 64, target.parent, ArtifactFormat.GGUF, settings, lambda fraction, stage: None
    )
    assert card.kl_divergence.value < 0.01


@pytest.mark.parametrize(
    ("architecture", "changes", "problem"),
    [
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar is 16"),
        ("Gemma2ForCausalLM", {"layer_types": ["full_attention"] * 3}, "each 2th layer"),
        ("Gemma2ForCausalLM", {"attn_logit_softcapping": None}, "does not cap"),
        ("Gemma3ForCausalLM", {"layer_types": ["sliding_attention"] * 7}, "each 6th layer"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1, 0, 1, 0, 1]}, "each 4th layer"),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 0}, "limits attention to a window"),
        ("Qwen2ForCausalLM", {"rope_parameters": LLAMA3_ROPE}, "'llama3' to qwen2"),
        ("LlamaForCausalLM", {"rope_parameters": {**LINEAR_ROPE, "rope_type": "dynamic"}}, "'dynamic' to llama"),
        ("Qwen3ForCausalLM", {"rope_parameters": {**YARN_ROPE, "attention_factor": 2.0}}, "YaRN with attention_factor"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    architecture: str, changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(IncompatibleModel, match=problem):
        converted(architecture, tmp_path, **changes)
