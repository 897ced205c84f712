"""A larger model that says what a smaller one says: for figures of sizes that nobody has to download.

Every dimension of a Llama is repeated `factor` times. Where the residual stream is x, it becomes (x, x, …): the norms
see the same mean square, each product is spread over the copies with its share of the weight, each head stands there
several times. The result computes the same up to rounding, from factor² times the weights (Net2Net, arXiv:1511.05641).
Noise of a thousandth of each weight keeps copies from being quantized alike.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

NOISE = 1e-3
# Fields of the configuration that grow, those of heads among them: a head keeps its size.
GROWING = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def widen(source: Path, target: Path, factor: int) -> None:
    """Reads the checkpoint of a Llama in one file, and writes a wider one."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja", ".txt", ".model") and "index" not in path.name:
            shutil.copy(path, target)
    config = json.loads((source / "config.json").read_text())
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config |= {name: config[name] * factor for name in GROWING}
    (target / "config.json").write_text(json.dumps(config, indent=1))
    generator = torch.Generator().manual_seed(0)
    with safe_open(source / "model.safetensors", "pt") as file:
        names = list(file.keys())
        tensors = {name: _wider(name, file.get_tensor(name), config, factor, generator) for name in names}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def _wider(name: str, tensor: torch.Tensor, config: dict[str, Any], factor: int, generator: torch.Generator) -> Any:
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return tensor.repeat(1, factor).contiguous()
    if name == "model.norm.weight":
        # The products of the head add up over the copies, whether it is the embedding or not.
        return tensor.repeat(factor) / factor
    if tensor.dim() == 1:
        return tensor.repeat(factor).contiguous()
    rows, columns = tensor.shape
    wide = tensor.float().repeat(factor, factor) / factor
    if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
        wide = _heads(tensor.float(), config["head_dim"], factor)
    elif name.endswith("o_proj.weight"):
        wide = _heads(tensor.float().T.contiguous(), config["head_dim"], factor).T
    assert wide.shape == (rows * factor, columns * factor)
    noise = 1 + NOISE * torch.randn(wide.shape, generator=generator)
    return (wide * noise).to(tensor.dtype).contiguous()


def _heads(tensor: torch.Tensor, size: int, factor: int) -> torch.Tensor:
    """[heads · size, columns] → each head `factor` times in a row, so that groups of queries keep their keys."""
    heads = tensor.view(-1, size, tensor.shape[1])
    wide = heads.repeat_interleave(factor, dim=0).reshape(-1, tensor.shape[1])
    return wide.repeat(1, factor) / factor
