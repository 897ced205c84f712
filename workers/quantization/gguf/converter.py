"""Converts llama-family checkpoints to GGUF, one tensor at a time.

Tensor names come from gguf-py. What this file supplies is the metadata, the order of the rotary halves in
the query and key weights, and the types that llama.cpp expects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, LlamaFileType, get_tensor_name_map
from gguf.tensor_mapping import TensorNameMap

from app.domain.errors import IncompatibleModel
from app.storage.checkpoints import Checkpoint, TensorInfo
from workers.quantization.base import JobRun
from workers.quantization.checkpoints.reader import read_tensor
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
# Buffers that some exporters save and llama.cpp computes itself.
IGNORED: Final = (".rotary_emb.inv_freq",)


def native_type(checkpoint: Checkpoint) -> str:
    """The GGUF type that holds a checkpoint's weights without loss."""
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return {frozenset({"BF16"}): "BF16", frozenset({"F16"}): "F16"}.get(frozenset(dtypes), "F32")


def convert(checkpoint: Checkpoint, target: Path, file_type: str, run: JobRun) -> None:
    """Writes `target` with matrices in `file_type` (F32, F16 or BF16) and vectors in F32.

    Raises UnsupportedArchitecture for a tokenizer, IncompatibleModel for a tensor, that has no place in GGUF.
    """
    llama_type, ggml_type = FILE_TYPES[file_type]
    writer = GGUFWriter(target, arch="llama")
    _write_metadata(writer, checkpoint, llama_type)
    tensors = _plan(checkpoint)
    for name, info in tensors:
        stored = _stored_type(info, ggml_type)
        size = int(np.prod(info.shape)) * TYPE_BYTES[stored]
        writer.add_tensor_info(name, info.shape, np.dtype(np.float32), size, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    _write_tensors(writer, checkpoint, tensors, ggml_type, run)
    writer.close()


def _write_metadata(writer: GGUFWriter, checkpoint: Checkpoint, llama_type: LlamaFileType) -> None:
    config = checkpoint.config
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(checkpoint.path.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    _write_rope(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(llama_type)
    writer.add_quantization_version(2)
    write_vocabulary(writer, checkpoint.path, read_vocabulary(checkpoint.path, config["vocab_size"]))


def _write_rope(writer: GGUFWriter, config: dict[str, Any]) -> None:
    # transformers 5 gathers both in rope_parameters; older checkpoints keep them apart.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise IncompatibleModel(
            f"rotary scaling of type {kind!r} has no converter to GGUF yet; choose a safetensors method "
            f"such as bitsandbytes",
            param="model",
        )
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)


def tensor_names(checkpoint: Checkpoint) -> TensorNameMap:
    """From the checkpoint's tensor names to GGUF's."""
    return get_tensor_name_map(MODEL_ARCH.LLAMA, checkpoint.config["num_hidden_layers"])


def _plan(checkpoint: Checkpoint) -> list[tuple[str, TensorInfo]]:
    """GGUF name and source of each tensor, in the source's order."""
    names = tensor_names(checkpoint)
    ordered = sorted(checkpoint.tensors.items(), key=lambda item: (item[1].file, item[1].start))
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    plan = []
    for name, info in ordered:
        # With tied embeddings llama.cpp takes the token embeddings for its output.
        if name.endswith(IGNORED) or (tied and name == "lm_head.weight"):
            continue
        plan.append((_gguf_name(names, name), info))
    return plan


def _gguf_name(names: TensorNameMap, name: str) -> str:
    mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if mapped is None:
        raise IncompatibleModel(f"tensor {name!r} has no place in llama.cpp's llama", param="model")
    return mapped


def _stored_type(info: TensorInfo, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    return GGMLQuantizationType.F32 if len(info.shape) == 1 else wanted


def _write_tensors(
    writer: GGUFWriter,
    checkpoint: Checkpoint,
    tensors: list[tuple[str, TensorInfo]],
    ggml_type: GGMLQuantizationType,
    run: JobRun,
) -> None:
    heads = checkpoint.config["num_attention_heads"]
    key_heads = checkpoint.config.get("num_key_value_heads") or heads
    permuted = {
        "attn_q.weight": heads,
        "attn_q.bias": heads,
        "attn_k.weight": key_heads,
        "attn_k.bias": key_heads,
    }
    done = 0
    for name, info in tensors:
        run.report(done / checkpoint.weight_bytes, "converting to GGUF")
        tensor = read_tensor(info)
        if name.partition("blk.")[2].partition(".")[2] in permuted:
            tensor = interleave_rotary_halves(tensor, permuted[name.split(".", 2)[2]])
        writer.write_tensor_data(_as_array(tensor, _stored_type(info, ggml_type)))
        done += info.end - info.start


def interleave_rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorders each head's rows from (half, pair) to (pair, half).

    Hugging Face rotates row i of a head with row i + size/2, llama.cpp's llama with row i + 1.
    Shape (heads · size, …) stays as it is.
    """
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _as_array(tensor: torch.Tensor, stored: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    """The tensor's bytes as NumPy, which knows no bfloat16, can carry them."""
    cast = tensor.to(TORCH_DTYPES[stored]).contiguous()
    if stored is GGMLQuantizationType.BF16:
        return cast.view(torch.uint16).numpy()
    return cast.numpy()
