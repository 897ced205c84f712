"""Loads a checkpoint in safetensors, plain or quantized, for whoever runs it: scorers and engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from transformers import AutoModel, AutoModelForCausalLM, GPTQConfig

from app.domain.errors import CorruptCheckpoint

# What nothing here asks of a model for embeddings, and what some come without.
UNUSED: Final = "pooler."
# Of gptqmodel: unpacks the weights and multiplies, whatever their groups are.
PLAIN_KERNEL: Final = "torch"


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
    model, loaded = kind.from_pretrained(
        folder, dtype=dtype, device_map={"": default_device()}, local_files_only=True, trust_remote_code=False,
        output_loading_info=True, **_kernel(folder),
    )  # fmt: skip
    require_all_found(folder, loaded)
    return model.eval()


def _kernel(folder: Path) -> dict[str, Any]:
    """For GPTQ of whole rows on a CPU: gptqmodel would choose a kernel that then refuses groups of their length."""
    quantization = _config(folder).get("quantization_config") or {}
    if quantization.get("quant_method") != "gptq" or not _needs_plain_kernel(quantization):
        return {}
    return {"quantization_config": GPTQConfig(bits=quantization["bits"], backend=PLAIN_KERNEL)}


def _needs_plain_kernel(quantization: dict[str, Any]) -> bool:
    overrides = (quantization.get("dynamic") or {}).values()
    sizes = [quantization.get("group_size"), *(override.get("group_size") for override in overrides)]
    return -1 in sizes and default_device() == "cpu"


def require_all_found(folder: Path, loaded: dict[str, Any]) -> None:
    """Raises CorruptCheckpoint where transformers, which then only warns, filled a tensor with random numbers.

    `loaded` is what it tells of the loading.
    """
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith(UNUSED))
    if missing:
        raise CorruptCheckpoint(f"the model in {folder.name!r} lacks {missing[0]!r}; copy or download it again")


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _differs_by_module(folder: Path) -> bool:
    """Whether this is GPTQ with bits that differ by module, which transformers' own loader does not read."""
    quantization = _config(folder).get("quantization_config") or {}
    return quantization.get("quant_method") == "gptq" and bool(quantization.get("dynamic"))


def _load_with_gptqmodel(folder: Path) -> Any:
    from gptqmodel import BACKEND, GPTQModel

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    plain = _needs_plain_kernel(_config(folder)["quantization_config"])
    backend = BACKEND(PLAIN_KERNEL) if plain else BACKEND.AUTO
    return GPTQModel.load(str(folder), device=device, backend=backend, trust_remote_code=False).model.eval()
