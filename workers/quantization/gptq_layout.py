"""GPTQ's storage of integers: codes packed along the inputs, zero points along the outputs, 32 bits to a word.

The second version of the format, which stores zero points as they are: the first stores them less one.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from app.domain.errors import IncompatibleModel
from workers.quantization.casting import require_finite

WORD: Final = 32
PARTS: Final = ("qweight", "qzeros", "scales", "g_idx")

Tensors = dict[str, torch.Tensor]


def pack(module: str, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int) -> Tensors:
    """The tensors, by their local names, of a Linear whose weight is (code - zero) · scale.

    `codes` is (out, in); `scales` and `zeros` are (out, groups). Raises IncompatibleModel for sizes that do not
    fill words.
    """
    outputs, inputs = codes.shape
    if outputs % WORD or inputs % WORD:
        raise IncompatibleModel(
            f"{module} has {outputs} outputs and {inputs} inputs, which the format packs by {WORD}; name it in "
            f"skip_modules",
            param="method.skip_modules",
        )
    group = inputs // scales.shape[1]
    return {
        "qweight": _pack_rows(codes.T, bits),
        "qzeros": _pack_rows(zeros, bits).T.contiguous(),
        "scales": require_finite(module, scales.T.to(torch.float16)).contiguous(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // group,
    }


def _pack_rows(values: torch.Tensor, bits: int) -> torch.Tensor:
    """(n, m) values as a stream of bits down each column, low ones first: (n · bits / 32, m) words."""
    numbers: npt.NDArray[np.uint8] = values.to(torch.uint8).numpy()
    planes = np.stack([(numbers >> bit) & 1 for bit in range(bits)], axis=1)
    packed = np.packbits(planes.reshape(-1, numbers.shape[1]), axis=0, bitorder="little")
    words = packed.reshape(-1, 4, numbers.shape[1]).transpose(0, 2, 1)
    return torch.from_numpy(np.ascontiguousarray(words).view("<i4")[..., 0])


def configuration(bits: int, group_size: int, left_alone: list[str]) -> dict[str, Any]:
    """The entry `quantization_config` of config.json; `left_alone` names modules inside the layers."""
    entry: dict[str, Any] = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq_v2",
        "bits": bits,
        "group_size": group_size,
        "sym": False,
        "desc_act": False,
        "lm_head": False,
    }
    if left_alone:
        entry["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in left_alone}
    return entry
