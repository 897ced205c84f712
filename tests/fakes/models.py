"""Tiny random models of every family that the GGUF converter knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.fakes.fitting import fit
from tests.fakes.tokenizers import STYLES, styled_tokenizer

# A window far shorter than the contexts of tests, and layers enough for one of each kind.
SHAPES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"style": "llama3"},
    "MistralForCausalLM": {"style": "llama2", "sliding_window": None, "head_dim": 32},
    "Qwen2ForCausalLM": {"style": "qwen2"},
    "Qwen3ForCausalLM": {"style": "qwen2", "head_dim": 32},
    "Gemma2ForCausalLM": {
        "style": "gemma", "num_hidden_layers": 3, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8,
        "tie_word_embeddings": True,
    },
    "Gemma3ForCausalLM": {
        "style": "gemma", "num_hidden_layers": 7, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8,
        "tie_word_embeddings": True,
    },
    "Phi3ForCausalLM": {"style": "phi3", "original_max_position_embeddings": 1024},
    "SmolLM3ForCausalLM": {"style": "llama3", "num_hidden_layers": 5, "tie_word_embeddings": True},
}  # fmt: skip


def tiny_model(
    architecture: str, folder: Path, *, dtype: str = "float32", style: str | None = None, seed: int = 0, **changes: Any
) -> Path:
    """Saves a random model with a tokenizer of its family, or of `style`, in `folder` and returns that.

    Norms and biases are random too, and weights large enough for every part to show in the logits. `changes` are
    fields of the configuration.
    """
    import torch
    import transformers

    shape = dict(SHAPES[architecture])
    family_style = shape.pop("style")
    tokenizer = styled_tokenizer(style or family_style)
    config = _config(transformers, architecture, tokenizer, STYLES[style or family_style].stop, shape | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, architecture)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    fit(model, tokenizer)
    model.generation_config = transformers.GenerationConfig(eos_token_id=config.eos_token_id)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(
    transformers: Any, architecture: str, tokenizer: Any, stop: tuple[str, ...], changes: dict[str, Any]
) -> Any:
    name = architecture.replace("ForCausalLM", "Config").replace("Gemma3Config", "Gemma3TextConfig")
    common = {
        "vocab_size": 640, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "initializer_range": 0.15, "tie_word_embeddings": False, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids(list(stop)), "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return getattr(transformers, name)(**(common | changes))
