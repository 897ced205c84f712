"""Reads a checkpoint tensor by tensor: memory is bounded by the largest tensor."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from app.storage.checkpoints import Checkpoint, TensorInfo
from app.storage.pooling import pooling_files

# https://github.com/huggingface/safetensors#format: the names of types in a file's header.
DTYPES: Final[dict[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}

# Weights, whatever a library calls them, and what a method writes itself.
NOT_COPIED = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".py")


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """One tensor, in the type and shape its file gives.

    Plain reads, not a memory map: mapped pages would count as this process's memory until it ends.
    """
    if info.end == info.start:
        return torch.empty(info.shape, dtype=DTYPES[info.dtype])
    buffer = bytearray(info.end - info.start)
    with info.file.open("rb", buffering=0) as file:
        file.seek(info.start)
        view = memoryview(buffer)
        while view:
            count = file.readinto(view)
            if not count:
                raise OSError(f"{info.file.name} ended inside a tensor; it changed while it was read")
            view = view[count:]
    return torch.frombuffer(buffer, dtype=DTYPES[info.dtype]).reshape(info.shape)


def read_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor, float]]:
    """Every tensor with its name and the fraction of bytes read before it, in the files' order."""
    done = 0
    for name, info in sorted(checkpoint.tensors.items(), key=lambda item: (item[1].file, item[1].start)):
        yield name, read_tensor(info), done / checkpoint.weight_bytes
        done += info.end - info.start


def copy_companions(source: Path, target: Path) -> None:
    """Copies what belongs to a checkpoint besides weights and config.json: tokenizer, chat template, …"""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != "config.json" and not path.name.endswith(NOT_COPIED):
            shutil.copyfile(path, target / path.name)
    for inner in pooling_files(source):
        (target / inner).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / inner, target / inner)
