"""Training of every weight.

Weights, gradients and the optimizer's two moments have 32 bits each on a CPU, 16 bytes per weight; on a GPU the moments
have 8 bits and may move to the machine's memory, 10 bytes per weight. Products are computed in 32 bits too, on a GPU in
TF32: in bfloat16 a pass would not see most of what small learning rates change, and would ask for it again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from app.storage.checkpoints import GENERATION_CONFIG, Checkpoint
from workers.quantization.base import WritingRun
from workers.quantization.checkpoints.reader import copy_companions
from workers.quantization.streaming import dtype_entry, write_config
from workers.training.recipe import Base, Recipe, Written, describe_files, load_base
from workers.training.rounding import to_bfloat16


class Full(Recipe):
    def load(self, base: Checkpoint) -> Any:
        return load_base(base, dtype=torch.float32)

    def save(self, model: Any, base: Base, target: Path, scratch: Path, run: WritingRun) -> Written:
        run.report(0.0, "writing the model")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.data = to_bfloat16(name, parameter)
        model.to(torch.bfloat16).save_pretrained(target, max_shard_size=run.max_shard_bytes)
        (target / GENERATION_CONFIG).unlink(missing_ok=True)
        write_config(base.checkpoint, target, dtype_entry(torch.bfloat16))
        copy_companions(base.checkpoint.path, target)
        for path in target.iterdir():
            path.chmod(0o644)
        return describe_files(target)
