"""Writes safetensors files tensor by tensor: nothing is held back until the end.

A file's header stands before its data but is known only afterwards. Room for it is left at the front and
the header padded with spaces to fill it, as https://github.com/huggingface/safetensors#format allows.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch

from workers.quantization.checkpoints.reader import DTYPE_NAMES

INDEX = "model.safetensors.index.json"
# The longest header entry around a name: two 15-digit offsets, a shape of four dimensions, punctuation.
ENTRY_BYTES = 140
ALIGNMENT = 8


class CheckpointWriter:
    """`header_bytes` bounds one file's header; `header_bound` computes it from the names to come."""

    def __init__(self, folder: Path, *, max_shard_bytes: int, header_bytes: int) -> None:
        self.folder = folder
        self.max_shard_bytes = max_shard_bytes
        self.header_bytes = header_bytes
        self.total_bytes = 0
        self._shards: list[Shard] = []

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._shards:
            self._shards[-1].file.close()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if not self._shards or (self._shards[-1].size and self._shards[-1].size + size > self.max_shard_bytes):
            self._open_shard()
        self._shards[-1].write(name, tensor, size)
        self.total_bytes += size

    def describe(self, metadata: dict[str, str]) -> None:
        """Adds to the metadata of the file that was written to last."""
        if metadata:
            self._shards[-1].metadata |= metadata

    def _open_shard(self) -> None:
        if self._shards:
            self._shards[-1].finish()
        path = self.folder / f".shard-{len(self._shards)}"
        self._shards.append(Shard(path, self.header_bytes))

    def _finish(self) -> None:
        if not self._shards:
            self._open_shard()
        self._shards[-1].finish()
        count = len(self._shards)
        if count == 1:
            self._shards[0].path.rename(self.folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self._shards, start=1):
            name = f"model-{number:05d}-of-{count:05d}.safetensors"
            shard.path.rename(self.folder / name)
            weight_map |= dict.fromkeys(shard.entries, name)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        (self.folder / INDEX).write_text(json.dumps(index, indent=1))


class Shard:
    """One file under construction."""

    def __init__(self, path: Path, header_bytes: int) -> None:
        self.path = path
        self.header_bytes = -(-header_bytes // ALIGNMENT) * ALIGNMENT
        self.size = 0
        self.entries: dict[str, dict[str, object]] = {}
        self.metadata: dict[str, str] = {"format": "pt"}
        self.file: BinaryIO = path.open("wb")
        self.file.seek(8 + self.header_bytes)

    def write(self, name: str, tensor: torch.Tensor, size: int) -> None:
        offsets = [self.size, self.size + size]
        dtype = DTYPE_NAMES[tensor.dtype]
        self.entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        if size:
            tensor.contiguous().flatten().view(torch.uint8).numpy().tofile(self.file)
        self.size += size

    def finish(self) -> None:
        header = json.dumps({"__metadata__": self.metadata, **self.entries}).encode()
        if len(header) > self.header_bytes:
            raise ValueError(f"the header needs {len(header)} bytes, {self.header_bytes} were reserved")
        self.file.seek(0)
        self.file.write(struct.pack("<Q", self.header_bytes) + header.ljust(self.header_bytes))
        self.file.close()


def header_bound(names: list[str]) -> int:
    """Bytes that a header naming these tensors needs at most."""
    return 64 + sum(len(json.dumps(name)) + ENTRY_BYTES for name in names)
