"""Cuts a GGUF file into parts as llama.cpp loads them.

The parts are `<name>-00001-of-0000N.gguf`. Each has the keys `split.no` (from 0), `split.count` and
`split.tensors.count` (of all parts); the first has the model's own keys too:
https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from gguf import GGUFReader, GGUFValueType, GGUFWriter

from workers.quantization.base import JobRun

# Keys that the reader makes up from a file's header, and that the writer writes by itself.
NOT_COPIED: Final = ("GGUF.", "general.architecture", "split.")
# What a tensor's entry in the header takes at most: its name, four dimensions, type and offset, and its padding.
ENTRY_BYTES: Final = 160


def split_file(path: Path, limit_bytes: int, run: JobRun) -> list[Path]:
    """Replaces the file by parts of at most `limit_bytes` and returns them; a file that fits stays as it is.

    A tensor that is larger than the limit has a part to itself. Needs as much free disk as the file takes.
    """
    if path.stat().st_size <= limit_bytes:
        return [path]
    reader = GGUFReader(path)
    parts = _share_out(reader, limit_bytes)
    paths = [path.with_name(f"{path.stem}-{number:05d}-of-{len(parts):05d}.gguf") for number in _from_1(parts)]
    for number, (tensors, target) in enumerate(zip(parts, paths, strict=True)):
        run.report(number / len(parts), "splitting")
        _write_part(reader, tensors, number, len(parts), target)
    path.unlink()
    return paths


def _from_1(parts: list[Any]) -> range:
    return range(1, len(parts) + 1)


def _share_out(reader: GGUFReader, limit_bytes: int) -> list[list[Any]]:
    """Tensors in their order; the model's keys take their room in the first part."""
    parts: list[list[Any]] = [[]]
    used = int(reader.data_offset)
    for tensor in reader.tensors:
        size = int(tensor.n_bytes) + ENTRY_BYTES
        if parts[-1] and used + size > limit_bytes:
            parts.append([])
            used = ENTRY_BYTES
        parts[-1].append(tensor)
        used += size
    return parts


def _write_part(reader: GGUFReader, tensors: list[Any], number: int, count: int, target: Path) -> None:
    writer = GGUFWriter(target, arch=reader.fields["general.architecture"].contents())
    if number == 0:
        _copy_keys(reader, writer)
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", len(reader.tensors))
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.data.shape, tensor.data.dtype, int(tensor.n_bytes), raw_dtype=tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


def _copy_keys(reader: GGUFReader, writer: GGUFWriter) -> None:
    for key, stored in reader.fields.items():
        if not key.startswith(NOT_COPIED):
            kind = stored.types[0]
            element = stored.types[-1] if kind is GGUFValueType.ARRAY else None
            writer.add_key_value(key, stored.contents(), kind, element)
