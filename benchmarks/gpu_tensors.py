"""How two checkpoints in safetensors differ, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def differences(one: Path, other: Path) -> dict[str, Any]:
    """Names, types and shapes that are not in both; of the rest how many elements differ, and by how much at most."""
    first, second = _tensors(one), _tensors(other)
    found: dict[str, Any] = {
        "tensors": len(first), "only_here": sorted(first.keys() - second.keys())[:5],
        "only_there": sorted(second.keys() - first.keys())[:5], "unlike": [], "differing": {},
    }  # fmt: skip
    total = unequal = 0
    for name in sorted(first.keys() & second.keys()):
        a, b = _read(first[name], name), _read(second[name], name)
        if a.dtype != b.dtype or a.shape != b.shape:
            found["unlike"].append(f"{name}: {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}")
            continue
        count = int((_bits(a) != _bits(b)).sum())
        total, unequal = total + a.numel(), unequal + count
        if count:
            largest = float((a.double() - b.double()).abs().max()) if a.dtype.is_floating_point else None
            found["differing"][name] = {"share": count / a.numel(), "largest": largest}
    found["differing_tensors"] = len(found["differing"])
    found["differing"] = dict(sorted(found["differing"].items(), key=lambda item: -item[1]["share"])[:5])
    return found | {"unequal_share": unequal / max(total, 1)}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """As integers: numbers of eight bits cannot be compared, and a NaN equals nothing."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(sizes[tensor.element_size()]) if tensor.dtype.is_floating_point else tensor


def _tensors(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _read(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
