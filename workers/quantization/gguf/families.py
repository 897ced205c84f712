"""What each model family needs beyond the common metadata and names: one row per architecture.

What llama.cpp fixes in its code and the format has no key for is required of the configuration, and a model that
differs is refused: it would load and answer wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gguf import MODEL_ARCH, GGUFWriter
from transformers import AutoConfig

from app.domain.errors import IncompatibleModel, UnsupportedArchitecture
from app.storage.checkpoints import Checkpoint

Config = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """`rotates_neighbours`: query and key rows are reordered, see `interleave_rotary_halves`.

    `norm_offset` is added to norm weights that transformers stores less it. `rope_types` are the rotary scalings
    that llama.cpp applies for this architecture.
    """

    arch: MODEL_ARCH
    rotates_neighbours: bool = False
    norm_offset: float = 0.0
    rope_types: frozenset[str] = frozenset({"default", "linear", "yarn"})
    write: Callable[[GGUFWriter, Config], None] = lambda _writer, _config: None
    check: Callable[[Config], None] = lambda _config: None


def load_config(checkpoint: Checkpoint) -> Config:
    """config.json with transformers' defaults filled in and its older spellings brought up to date."""
    return dict(AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False, local_files_only=True).to_dict())


def family_of(checkpoint: Checkpoint) -> Family:
    """Raises UnsupportedArchitecture."""
    if checkpoint.architecture not in FAMILIES:
        raise UnsupportedArchitecture(f"a {checkpoint.architecture} has no built-in converter to GGUF", param="model")
    return FAMILIES[checkpoint.architecture]


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise IncompatibleModel(f"{problem}; choose a safetensors method such as bitsandbytes", param="model")


def _no_sliding_window(config: Config) -> None:
    used = config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or [])
    _require(not used, "the model limits attention to a window, which llama.cpp does not do for its architecture")


def _write_gemma2(writer: GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config["sliding_window"])
    writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _check_gemma2(config: Config) -> None:
    _check_pattern(config, 2)
    _require(
        bool(config["attn_logit_softcapping"] and config["final_logit_softcapping"]),
        "the model does not cap its logits, as llama.cpp's gemma2 always does",
    )
    # The model of 46 layers is the only one that llama.cpp scales by the hidden size.
    expected = _head_dim(config) if config["num_hidden_layers"] != 46 else _width_per_head(config)
    _check_scale(config, expected)


def _write_gemma3(writer: GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config["sliding_window"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _check_gemma3(config: Config) -> None:
    _check_pattern(config, 6)
    _require(not config.get("attn_logit_softcapping"), "the model caps attention's logits, llama.cpp's gemma3 does not")
    _require(not config.get("use_bidirectional_attention"), "the model attends in both directions")
    # The model of 62 layers is the only one that llama.cpp scales by the hidden size.
    expected = _head_dim(config) if config["num_hidden_layers"] != 62 else _width_per_head(config)
    _check_scale(config, expected)


def _check_pattern(config: Config, period: int) -> None:
    """llama.cpp attends in a sliding window in all layers but each `period`-th."""
    layers = range(config["num_hidden_layers"])
    expected = ["full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in layers]
    _require(config["layer_types"] == expected, f"not exactly each {period}th layer attends to the whole context")


def _check_scale(config: Config, expected: int) -> None:
    scalar = config["query_pre_attn_scalar"]
    _require(scalar == expected, f"query_pre_attn_scalar is {scalar}, llama.cpp computes with {expected}")


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or _width_per_head(config))


def _width_per_head(config: Config) -> int:
    return int(config["hidden_size"] // config["num_attention_heads"])


def _write_phi3(writer: GGUFWriter, config: Config) -> None:
    writer.add_sliding_window(config.get("sliding_window") or 0)
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])


def _check_smollm3(config: Config) -> None:
    _no_sliding_window(config)
    layers = range(config["num_hidden_layers"])
    expected = [int((layer + 1) % 4 != 0) for layer in layers]
    _require(config["no_rope_layers"] == expected, "not exactly each 4th layer is without rotary embeddings")


LLAMA: Final = Family(
    MODEL_ARCH.LLAMA, rotates_neighbours=True, rope_types=frozenset({"default", "linear", "yarn", "llama3"})
)
FAMILIES: Final[dict[str, Family]] = {
    "LlamaForCausalLM": LLAMA,
    # Its first version attends to the last 4096 tokens only; llama.cpp, like its makers later, to all.
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": Family(MODEL_ARCH.QWEN2, check=_no_sliding_window),
    "Qwen3ForCausalLM": Family(MODEL_ARCH.QWEN3, check=_no_sliding_window),
    "Gemma2ForCausalLM": Family(
        MODEL_ARCH.GEMMA2,
        norm_offset=1.0,
        rope_types=frozenset({"default"}),
        write=_write_gemma2,
        check=_check_gemma2,
    ),
    "Gemma3ForCausalLM": Family(
        MODEL_ARCH.GEMMA3,
        norm_offset=1.0,
        rope_types=frozenset({"default", "linear"}),
        write=_write_gemma3,
        check=_check_gemma3,
    ),
    "Phi3ForCausalLM": Family(MODEL_ARCH.PHI3, rope_types=frozenset({"default", "longrope"}), write=_write_phi3),
    "SmolLM3ForCausalLM": Family(
        MODEL_ARCH.SMOLLM3,
        rotates_neighbours=True,
        check=_check_smollm3,
    ),
}
