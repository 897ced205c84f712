"""The loop of every method that needs no data: read a tensor, change it, write it, forget it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from app.domain.artifacts import QuantizationReport
from app.storage.checkpoints import Checkpoint
from workers.quantization.base import WritingRun
from workers.quantization.casting import cast
from workers.quantization.checkpoints.reader import DTYPE_NAMES, copy_companions, read_tensors
from workers.quantization.checkpoints.writer import CheckpointWriter, header_bound


@dataclass(frozen=True)
class Stored:
    """What one of the source's tensors becomes: named parts, and how the report calls its type."""

    type: str
    parts: Iterable[tuple[str, torch.Tensor]]
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversion:
    """`convert` changes one tensor of any shape. `part_names` and `metadata_bytes` bound what that adds to a header.

    `part_names` gives every name that a tensor's parts may have, from the tensor's own.
    """

    stage: str
    convert: Callable[[str, torch.Tensor], Stored]
    part_names: Callable[[str], list[str]]
    metadata_bytes: int = 0


def stream(
    source: Checkpoint, target: Path, conversion: Conversion, config: dict[str, Any], run: WritingRun
) -> QuantizationReport:
    """Writes the converted checkpoint with `config` over the source's own into the empty folder `target`."""
    types: Counter[str] = Counter()
    names = [part for name in source.tensors for part in conversion.part_names(name)]
    room = header_bound(names) + conversion.metadata_bytes * len(source.tensors)
    with CheckpointWriter(target, max_shard_bytes=run.max_shard_bytes, header_bytes=room) as writer:
        for name, tensor, fraction in read_tensors(source):
            run.report(fraction, conversion.stage)
            stored = conversion.convert(name, tensor)
            for part, value in stored.parts:
                writer.write(part, value)
            writer.describe(stored.metadata)
            types[stored.type] += 1
    write_config(source, target, config)
    copy_companions(source.path, target)
    return QuantizationReport(
        tensor_types=dict(types), parameter_count=source.parameter_count, weight_bytes=writer.total_bytes
    )


def write_config(source: Checkpoint, target: Path, changes: dict[str, Any]) -> None:
    """config.json with some entries replaced. `torch_dtype` is the older name of `dtype`."""
    config = {name: value for name, value in source.config.items() if name != "torch_dtype" or "dtype" not in changes}
    (target / "config.json").write_text(json.dumps(config | changes, indent=2))


def kept(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> Stored:
    """A tensor that is not quantized, in `dtype` if it is of floating point. Raises IncompatibleModel, as `cast`."""
    value = cast(name, tensor, dtype)
    return Stored(DTYPE_NAMES[value.dtype], [(name, value)])


def dtype_entry(dtype: torch.dtype) -> dict[str, str]:
    """The entry of config.json that names a type."""
    return {"dtype": str(dtype).removeprefix("torch.")}


def model_dtype(source: Checkpoint) -> torch.dtype:
    """The type in which most of the source's bytes are stored, if a model can run in it; else bfloat16."""
    sizes: Counter[str] = Counter()
    for info in source.tensors.values():
        sizes[info.dtype] += info.end - info.start
    runnable = {"F16": torch.float16, "BF16": torch.bfloat16}
    return runnable.get(sizes.most_common(1)[0][0], torch.bfloat16)
