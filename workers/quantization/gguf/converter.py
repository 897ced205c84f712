"""Converts checkpoints to GGUF, one tensor at a time.

Tensor names come from gguf-py, what is particular to a family from `families`. What this file supplies is the common
metadata, the order of the rotary halves in the query and key weights, and the types that llama.cpp expects.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, LlamaFileType, PoolingType, get_tensor_name_map
from gguf.tensor_mapping import TensorNameMap

from app.domain.errors import IncompatibleModel
from app.storage.checkpoints import Checkpoint, TensorInfo
from app.storage.pooling import read_pooling
from workers.quantization.base import JobRun
from workers.quantization.casting import cast
from workers.quantization.checkpoints.reader import read_tensor
from workers.quantization.gguf.families import Config, Family, family_of, load_config
from workers.quantization.gguf.rope import rope_tensors, write_rope
from workers.quantization.gguf.vocabulary import read_vocabulary, write_vocabulary

FILE_TYPES: Final = {
    "F32": (LlamaFileType.ALL_F32, GGMLQuantizationType.F32),
    "F16": (LlamaFileType.MOSTLY_F16, GGMLQuantizationType.F16),
    "BF16": (LlamaFileType.MOSTLY_BF16, GGMLQuantizationType.BF16),
}
TYPE_BYTES: Final = {GGMLQuantizationType.F32: 4, GGMLQuantizationType.F16: 2, GGMLQuantizationType.BF16: 2}
TORCH_DTYPES: Final = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
POOLING: Final = {"mean": PoolingType.MEAN, "cls": PoolingType.CLS, "lasttoken": PoolingType.LAST}
# Buffers that some exporters save and llama.cpp computes itself.
IGNORED: Final = (".rotary_emb.inv_freq",)


def native_type(checkpoint: Checkpoint) -> str:
    """The GGUF type that holds a checkpoint's weights without loss."""
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return {frozenset({"BF16"}): "BF16", frozenset({"F16"}): "F16"}.get(frozenset(dtypes), "F32")


@dataclass(frozen=True)
class Planned:
    """One tensor of the file: its name and shape there, and how to get it."""

    name: str
    shape: tuple[int, ...]
    source_bytes: int
    read: Callable[[], torch.Tensor]


def convert(checkpoint: Checkpoint, target: Path, file_type: str, run: JobRun) -> None:
    """Writes `target` with matrices in `file_type` (F32, F16 or BF16) and vectors in F32.

    Raises UnsupportedArchitecture for a model or tokenizer, IncompatibleModel for a setting or tensor, that has no
    place in GGUF.
    """
    llama_type, ggml_type = FILE_TYPES[file_type]
    family, config = family_of(checkpoint), load_config(checkpoint)
    family.check(config)
    writer = GGUFWriter(target, arch=MODEL_ARCH_NAMES[family.arch])
    _write_metadata(writer, checkpoint, family, config)
    writer.add_file_type(llama_type)
    planned = _plan(checkpoint, family, config)
    for tensor in planned:
        stored = _stored_type(tensor, ggml_type)
        size = math.prod(tensor.shape) * TYPE_BYTES[stored]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    _write_tensors(writer, planned, ggml_type, run)
    writer.close()


def _write_metadata(writer: GGUFWriter, checkpoint: Checkpoint, family: Family, config: Config) -> None:
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_type("model")
    writer.add_name(checkpoint.path.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    write_rope(writer, family, config)
    family.write(writer, config)
    if pooling := read_pooling(checkpoint.path):
        writer.add_pooling_type(POOLING[pooling.mode])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_quantization_version(2)
    write_vocabulary(writer, checkpoint, read_vocabulary(checkpoint.path, config["vocab_size"]))


def tensor_names(checkpoint: Checkpoint) -> TensorNameMap:
    """From the checkpoint's tensor names to GGUF's. Raises UnsupportedArchitecture."""
    return get_tensor_name_map(family_of(checkpoint).arch, checkpoint.config["num_hidden_layers"])


def _plan(checkpoint: Checkpoint, family: Family, config: Config) -> list[Planned]:
    """What the family computes from the configuration, then the checkpoint's tensors in its files' order."""
    names = tensor_names(checkpoint)
    computed = rope_tensors(config)
    planned = [
        Planned(name, tuple(tensor.shape), 0, partial(computed.__getitem__, name)) for name, tensor in computed.items()
    ]
    ordered = sorted(checkpoint.tensors.items(), key=lambda item: (item[1].file, item[1].start))
    for name, info in ordered:
        # With tied embeddings llama.cpp takes the token embeddings for its output.
        if name.endswith(IGNORED) or (config.get("tie_word_embeddings") and name == "lm_head.weight"):
            continue
        mapped = _gguf_name(names, name, family)
        read = partial(_read_as_llama_cpp, info, mapped, family, config)
        planned.append(Planned(mapped, tuple(info.shape), info.end - info.start, read))
    return planned


def _gguf_name(names: TensorNameMap, name: str, family: Family) -> str:
    mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if mapped is None:
        raise IncompatibleModel(
            f"tensor {name!r} has no place in llama.cpp's {family.arch.name.lower()}", param="model"
        )
    return mapped


def _read_as_llama_cpp(info: TensorInfo, name: str, family: Family, config: Config) -> torch.Tensor:
    tensor = read_tensor(info)
    kind = name.rpartition(".")[0].rpartition(".")[2]
    if family.rotates_neighbours and kind in ("attn_q", "attn_k"):
        heads = config["num_attention_heads"]
        key_heads = config.get("num_key_value_heads") or heads
        tensor = interleave_rotary_halves(tensor, heads if kind == "attn_q" else key_heads)
    if family.norm_offset and kind.endswith("norm"):
        tensor = tensor.float() + family.norm_offset
    return tensor


def _stored_type(tensor: Planned, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    return GGMLQuantizationType.F32 if len(tensor.shape) == 1 else wanted


def _write_tensors(writer: GGUFWriter, planned: list[Planned], ggml_type: GGMLQuantizationType, run: JobRun) -> None:
    total = sum(tensor.source_bytes for tensor in planned)
    done = 0
    for tensor in planned:
        run.report(done / total, "converting to GGUF")
        writer.write_tensor_data(_as_array(tensor.name, tensor.read(), _stored_type(tensor, ggml_type)))
        done += tensor.source_bytes


def interleave_rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorders each head's rows from (half, pair) to (pair, half).

    Hugging Face rotates row i of a head with row i + size/2, llama.cpp's llama with row i + 1.
    Shape (heads · size, …) stays as it is.
    """
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _as_array(name: str, tensor: torch.Tensor, stored: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """The tensor's bytes as NumPy, which knows no bfloat16, can carry them. Raises IncompatibleModel."""
    values = cast(name, tensor, TORCH_DTYPES[stored], remedy="choose BF16 or F32").contiguous()
    if stored is GGMLQuantizationType.BF16:
        return values.view(torch.uint16).numpy()
    return values.numpy()
