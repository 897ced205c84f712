"""LoRA and QLoRA: low-rank matrices of 32 bits beside a base in bfloat16 or in 4 bits, by peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, prepare_model_for_kbit_training
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig

from app.domain.errors import InvalidParameter, UnsupportedArchitecture
from app.domain.fine_tuning import Adapter, BaseQuantization, TrainingOptions
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import WritingRun
from workers.quantization.checkpoints.reader import copy_companions
from workers.training.merging import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, merge_adapter
from workers.training.recipe import Base, Recipe, Written, describe_files, load_base

# Of peft: the name of the only adapter.
NAME: Final = "default"


class LowRank(Recipe):
    def load(self, base: Checkpoint) -> Any:
        return attach(load_low_rank_base(base, self.options), self.options)

    def save(self, model: Any, base: Base, target: Path, scratch: Path, run: WritingRun) -> Written:
        if not self.options.merge:
            save_adapter(model, base, target)
            return describe_files(target)
        save_adapter(model, base, scratch)
        merge_adapter(base.checkpoint, scratch, target, run)
        return describe_files(target)


def load_low_rank_base(base: Checkpoint, options: TrainingOptions) -> Any:
    """The frozen base as it is trained beside."""
    if options.adapter is Adapter.LORA:
        return load_base(base, dtype=torch.bfloat16)
    quantized = load_base(
        base, dtype=torch.bfloat16, quantization_config=bitsandbytes_config(options.base_quantization)
    )
    # What is not in 4 bits is computed in 32; the trainer turns gradient checkpointing on where it is wanted.
    return prepare_model_for_kbit_training(quantized, use_gradient_checkpointing=False)


def bitsandbytes_config(quantization: BaseQuantization) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.type,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def attach(model: Any, options: TrainingOptions) -> Any:
    """The model with fresh adapters, which add nothing yet. Raises InvalidParameter or UnsupportedArchitecture."""
    targets = options.target_modules
    if targets != "all-linear":
        _require_linear(model, targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.scale,
        lora_dropout=options.dropout,
        target_modules=targets if targets == "all-linear" else list(targets),
    )
    adapted = get_peft_model(model, config)
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module.get_base_layer(), torch.nn.Linear):
            kind = type(module.get_base_layer()).__name__
            raise UnsupportedArchitecture(
                f"layer {name.removeprefix(PREFIX)} is a {kind}, and adapters are trained beside Linear "
                f"layers only; name such in bitmill.target_modules, or train with the adapter full",
                param="model",
            )
    return adapted


def _require_linear(model: Any, targets: tuple[str, ...]) -> None:
    modules = dict(model.named_modules())
    linears = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear)]
    head = model.get_output_embeddings()
    for target in targets:
        found = [name for name in modules if name == target or name.endswith(f".{target}")]
        others = [name for name in found if name not in linears]
        if not found or others:
            what = f"{others[0]} is no Linear layer" if others else "no layer of this model is named so"
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            raise InvalidParameter(
                f"bitmill.target_modules names {target!r}, but {what}; it has {known}", param="bitmill.target_modules"
            )
        if any(modules[name] is head for name in found) and model.config.tie_word_embeddings:
            raise InvalidParameter(
                f"bitmill.target_modules names {target!r}, whose weights this model shares with its embeddings; an "
                f"adapter would change one of the two; leave it out",
                param="bitmill.target_modules",
            )


def save_adapter(model: Any, base: Base, target: Path) -> None:
    """A PEFT adapter's folder: its matrices in 32 bits, its configuration with the base's name, the tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, target / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (target / ADAPTER_WEIGHTS).chmod(0o644)
    _write_config(model, base.name, target / ADAPTER_CONFIG)
    copy_companions(base.checkpoint.path, target)


def _write_config(model: Any, base_name: str, path: Path) -> None:
    model.peft_config[NAME].save_pretrained(str(path.parent))
    content = json.loads(path.read_text())
    content |= {"base_model_name_or_path": base_name, "inference_mode": True, "target_modules": _targets(model)}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _targets(model: Any) -> list[str]:
    """The layers with an adapter by the ends of their names, where these mean no others."""
    modules = {name.removeprefix(PREFIX): module for name, module in model.named_modules()}
    adapted = [name for name, module in modules.items() if isinstance(module, LoraLayer)]
    ends = {name.rpartition(".")[2] for name in adapted}
    meant = [name for name in modules if name.rpartition(".")[2] in ends]
    return sorted(ends if len(meant) == len(adapted) else adapted)
