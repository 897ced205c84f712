"""Weights of a compressed-tensors checkpoint, unpacked one by one as a model reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from accelerate.utils import OffloadedWeightsLoader
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

from app.storage.checkpoints import Checkpoint, TensorInfo
from workers.quantization.checkpoints.reader import read_tensor

SCALE: Final = ".weight_scale"


def is_compressed(source: Checkpoint) -> bool:
    entry = source.config.get("quantization_config") or {}
    return entry.get("quant_method") == "compressed-tensors"


def scheme_of(source: Checkpoint) -> QuantizationScheme:
    """That of our own artifacts, which have one for all layers."""
    return QuantizationScheme.model_validate(source.config["quantization_config"]["config_groups"]["group_0"])


def unpacked_bytes(source: Checkpoint) -> int:
    """What the weights take once those that are packed have 16 bits each."""
    bits = scheme_of(source).weights.num_bits
    codes = (".weight", ".weight_packed")
    parts = (info for name, info in source.tensors.items() if name.endswith(codes) and _module_of(name, source))
    return source.weight_bytes + sum((info.end - info.start) * 8 // bits * 2 for info in parts)


def _module_of(tensor: str, source: Checkpoint) -> str | None:
    """The quantized module that a stored tensor belongs to."""
    module = tensor.rpartition(".")[0]
    return module if module + SCALE in source.tensors else None


class UnpackedWeights(OffloadedWeightsLoader):
    """Like the loader that it extends, for a checkpoint of one scheme; `index` is the loader's own."""

    def __init__(self, source: Checkpoint, index: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__(index=index)
        self.dtype = dtype
        self.scheme = scheme_of(source)
        self.compressor = BaseCompressor.get_value_from_registry(CompressionFormat(self.scheme.format).value)
        # By module, the tensors that its weight is made of; a bias is read as it is.
        self.parts: dict[str, dict[str, TensorInfo]] = {}
        for name, info in source.tensors.items():
            module = _module_of(name, source)
            if module is not None and not name.endswith(".bias"):
                self.parts.setdefault(module, {})[name.removeprefix(f"{module}.")] = info

    def __getitem__(self, key: str) -> torch.Tensor:
        module = key.removesuffix(".weight")
        if module not in self.parts or key in self.state_dict:
            stored: torch.Tensor = super().__getitem__(key)
            return stored
        state = {name: read_tensor(info) for name, info in self.parts[module].items()}
        if state["weight_scale"].dtype is torch.float32:
            state["weight_scale"] = state["weight_scale"].to(self.dtype)  # as transformers loads it
        weight: torch.Tensor = self.compressor.decompress(state, self.scheme)["weight"]
        return weight.to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter({*super().__iter__(), *(f"{module}.weight" for module in self.parts)})

    def round_inputs(self, model: Any) -> None:
        """Has the model's quantized layers round their inputs as the scheme says, as their library does."""
        arguments = self.scheme.input_activations
        if arguments is None:
            return

        def rounded(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            scale, zero_point = compute_dynamic_scales_and_zp(inputs[0], arguments, module)
            return (fake_quantize(inputs[0], scale, zero_point, arguments),)

        for name in self.parts:
            model.get_submodule(name).register_forward_pre_hook(rounded)
