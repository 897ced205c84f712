"""Adds an adapter to the weights of its base, tensor by tensor.

The base is read from its own files, in full precision: weights of 4 bits would take the adapter's small changes only
where they cross half a step. The sum is computed in 32 bits and rounded once, in a way that keeps small changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file

from app.domain.errors import IncompatibleModel, UnsupportedArchitecture
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import WritingRun
from workers.quantization.streaming import Conversion, Stored, dtype_entry, kept, stream
from workers.training.rounding import to_bfloat16

# https://huggingface.co/docs/peft/developer_guides/checkpoint: names of files and tensors.
ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
# Whatever makes an adapter more than two matrices and a factor, by what it is where it is off.
PLAIN: Final[dict[str, Any]] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "trainable_token_indices": None,
}


@dataclass(frozen=True)
class LowRankUpdate:
    """`up` (out, rank) times `down` (rank, in), times `scale`."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The sum with a weight (out, in), as float32."""
        return weight.float() + self.scale * (self.up.float() @ self.down.float())


def read_updates(adapter: Path) -> dict[str, LowRankUpdate]:
    """By the names of the weights that they belong to. Raises IncompatibleModel for what is not plain LoRA."""
    config = json.loads((adapter / ADAPTER_CONFIG).read_text())
    for field, plain in PLAIN.items():
        if config.get(field) and config[field] != plain:
            raise IncompatibleModel(
                f"the adapter's {field} is {config[field]!r}; only plain LoRA can be merged or served beside its base",
                param="model",
            )
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    modules = {name.rpartition(".lora_")[0] for name in tensors}
    return {
        f"{module.removeprefix(PREFIX)}.weight": LowRankUpdate(
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"], scale
        )
        for module in modules
    }


def merge_adapter(base: Checkpoint, adapter: Path, target: Path, run: WritingRun) -> None:
    """Writes the base with the adapter in it, in bfloat16, into the empty folder `target`.

    Raises UnsupportedArchitecture where the base's files name or hold weights otherwise than the model does.
    """
    updates = read_updates(adapter)
    missing = next((name for name in updates if name not in base.tensors), None)
    if missing is not None:
        raise UnsupportedArchitecture(
            f"the files of this {base.architecture} hold no {missing}, so that the adapter cannot be added to it; "
            f"leave bitmill.merge out and serve the adapter beside its base",
            param="bitmill.merge",
        )

    def convert(name: str, tensor: torch.Tensor) -> Stored:
        changed = to_bfloat16(name, updates[name].added_to(tensor)) if name in updates else tensor
        return kept(name, changed, torch.bfloat16)

    conversion = Conversion("merging the adapter", convert, lambda name: [name])
    stream(base, target, conversion, dtype_entry(torch.bfloat16), run)
