"""Every architecture's conversion against transformers: the same logits, tokens, ends and template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import IncompatibleModel, QualityGateFailed
from app.domain.quantization.methods.gguf import ARCHITECTURES
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.contract.test_methods import prove
from tests.fakes.checkpoints import TEXT
from tests.fakes.models import tiny_model
from tests.fakes.run import RecordingRun
from tests.fakes.tokenizers import STYLES
from workers.evaluation.scorers.gguf import GgufScorer
from workers.evaluation.scorers.safetensors import SafetensorsScorer
from workers.quantization.gguf.converter import convert
from workers.quantization.gguf.families import FAMILIES
from workers.quantization.gguf.vocabulary import end_tokens

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
        assert llama_cpp.llama_vocab_get_add_bos(scorer._vocab) == STYLES[style].adds_bos
        assert scorer.goes_on_after(frozenset(tokenizer.convert_tokens_to_ids(list(STYLES[style].stop)))) == frozenset()
        assert not scorer.lacks_template(tokenizer.chat_template)


def test_an_end_that_llama_cpp_does_not_know_fails_the_gate(settings: Settings, tmp_path: Path) -> None:
    """Four ordinary tokens end a generation; a GGUF file has room for three."""
    source, target = converted("LlamaForCausalLM", tmp_path, style="gpt2")
    generation = {"eos_token_id": [2, 300, 301, 302]}
    (source / "generation_config.json").write_text(json.dumps(generation))
    checkpoint = inspect_checkpoint(source)
    convert(checkpoint, target, "F32", RecordingRun(checkpoint, tmp_path / "stages"))
    with pytest.raises(QualityGateFailed, match=r"at token 302 \('.+'\)"):
        prove(inspect_checkpoint(source), target.parent, ArtifactFormat.GGUF, settings)


def test_another_chat_template_fails_the_gate(settings: Settings, tmp_path: Path) -> None:
    source, target = converted("LlamaForCausalLM", tmp_path)
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(QualityGateFailed, match="does not hold the original's chat template"):
        prove(inspect_checkpoint(source), target.parent, ArtifactFormat.GGUF, settings)


@pytest.mark.parametrize(
    ("eos", "stop", "expected"),
    [
        (1, [1], {"eos": 1}),
        (1, [0, 2, 1], {"eos": 1, "eot": 2, "eom": 0}),
        (None, [2, 0], {"eos": 2, "eot": 0}),
        (1, [0, 2, 3, 99], {"eos": 1, "eot": 2, "eom": 0}),
        (None, [], {}),
    ],
)
def test_the_end_of_a_turn_has_its_own_place(eos: int | None, stop: list[int], expected: dict[str, int]) -> None:
    assert end_tokens(["<|end_of_text|>", "</s>", "<end_of_turn>", "x"], eos, stop) == expected


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_every_architecture_passes_the_gate(architecture: str, settings: Settings, tmp_path: Path) -> None:
    source, target = converted(architecture, tmp_path, dtype="bfloat16", file_type="BF16")
    card = prove(inspect_checkpoint(source), target.parent, ArtifactFormat.GGUF, settings)
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
