"""A model whose weights stay on disk: each module's are read as it runs and dropped after it.

accelerate's hooks do the reading. Memory is bounded by the largest module and by the activations of one batch,
so that windows should go through together, not one by one: every pass reads all the weights once.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.hooks import attach_align_device_hook
from accelerate.utils import OffloadedWeightsLoader
from transformers import AutoConfig, AutoModelForCausalLM

from app.domain.errors import UnsupportedArchitecture
from app.storage.checkpoints import Checkpoint
from workers.calibration.unpacked import UnpackedWeights, is_compressed


def build_empty(source: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """The model without memory, on torch's meta device. Raises UnsupportedArchitecture."""
    try:
        config = AutoConfig.from_pretrained(source.path, trust_remote_code=False, local_files_only=True)
        with init_empty_weights(include_buffers=False):
            # The type counts: what is read into a parameter later is cast to its own.
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise UnsupportedArchitecture(
            f"transformers cannot build a {source.architecture}: {error}", param="model"
        ) from error
    return model.eval()


def open_streamed(source: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """The model, ready to run on the CPU (or the first GPU) in `dtype`, its weights read as they are needed.

    `source` is a plain checkpoint, or one in the compressed-tensors format.
    """
    model = build_empty(source, dtype)
    model.tie_weights()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = _weights_of(source, model, dtype)
    _require_all(model, weights)
    attach_align_device_hook(model, execution_device=device, offload=True, weights_map=weights)
    model.bitmill_weights = weights
    if isinstance(weights, UnpackedWeights):
        weights.round_inputs(model)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), persistent=name not in module._non_persistent_buffers_set)
    return model


def _require_all(model: Any, weights: OffloadedWeightsLoader) -> None:
    """transformers keeps the weights of some architectures, such as experts, in other shapes than files have."""
    known = set(weights)  # to ask the mapping itself would read the weight
    missing = [name for name, _ in model.named_parameters() if name not in known]
    if missing:
        raise UnsupportedArchitecture(
            f"{missing[0]} of a {type(model).__name__} is not stored under that name, so that its weights cannot be "
            f"read as they are needed; choose a method without calibration (gguf: importance_matrix 'none')",
            param="method",
        )


def weights_of(model: Any) -> OffloadedWeightsLoader:
    """Where a streamed model reads from: tensors by name. What is put into its `state_dict` is read in their place."""
    weights: OffloadedWeightsLoader = model.bitmill_weights
    return weights


def _weights_of(source: Checkpoint, model: Any, dtype: torch.dtype) -> OffloadedWeightsLoader:
    target = str(dtype).removeprefix("torch.")
    index = {
        name: {"safetensors_file": str(info.file), "weight_name": name, "dtype": target}
        for name, info in source.tensors.items()
    }
    # A tied weight is stored under one of its names only.
    for name, stored in getattr(model, "all_tied_weights_keys", {}).items():
        if name not in index and stored in index:
            index[name] = index[stored]
    return UnpackedWeights(source, index, dtype) if is_compressed(source) else OffloadedWeightsLoader(index=index)
