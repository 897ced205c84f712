"""Loads a checkpoint in safetensors, plain or quantized, for whoever runs it: scorers and engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModel, AutoModelForCausalLM


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def free_memory_bytes() -> int:
    """What a model that is loaded now may take: of the first GPU's memory if there is one, else of the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def load_causal_lm(folder: Path, dtype: str = "auto") -> Any:
    """The model in its own precision or another, on a GPU if there is one. Runs no code from it and asks no hub."""
    if _differs_by_module(folder):
        return _load_with_gptqmodel(folder)
    return _load(AutoModelForCausalLM, folder, dtype)


def load_backbone(folder: Path, dtype: str = "auto") -> Any:
    """The model without a head, as `load_causal_lm` loads it: what gives the states of tokens.

    What describes a quantized model names its modules as they were when it was saved. So one that was saved with its
    head is loaded with it, and the head is dropped.
    """
    config = _config(folder)
    saved_as = config.get("architectures") or [""]
    if config.get("quantization_config") and saved_as[0].endswith("ForCausalLM"):
        model = load_causal_lm(folder, dtype)
        # compressed-tensors unpacks the weights before the first pass of the whole model.
        with torch.no_grad():
            model(torch.tensor([[0]], device=model.device))
        return model.base_model
    return _load(AutoModel, folder, dtype)


def _load(kind: Any, folder: Path, dtype: str) -> Any:
    return kind.from_pretrained(
        folder, dtype=dtype, device_map={"": default_device()}, local_files_only=True, trust_remote_code=False
    ).eval()


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _differs_by_module(folder: Path) -> bool:
    """Whether this is GPTQ with bits that differ by module, which transformers' own loader does not read."""
    quantization = _config(folder).get("quantization_config") or {}
    return quantization.get("quant_method") == "gptq" and bool(quantization.get("dynamic"))


def _load_with_gptqmodel(folder: Path) -> Any:
    from gptqmodel import GPTQModel

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return GPTQModel.load(str(folder), device=device, trust_remote_code=False).model.eval()
