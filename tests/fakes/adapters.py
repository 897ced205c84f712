"""Adapters with random matrices, and their rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.persistence.tables import ArtifactRow


def random_adapter(base: Path, folder: Path, seed: int, **options: object) -> Path:
    """Strong enough to change what is written."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", **options)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def adapter_row(name: str, method: dict[str, Any], *, source: str, path: str | None = None) -> ArtifactRow:
    """`path` is the folder's name among the artifacts, the end of the adapter's name where it is left out."""
    return ArtifactRow(
        id=f"artifact-{time.time_ns()}", name=name, kind=ArtifactKind.FINE_TUNED, format=ArtifactFormat.ADAPTER,
        source=source, method=method, source_fingerprint="f" * 64, key="k" * 64, versions={}, size_bytes=1,
        parameter_count=1, bits_per_weight=1.0, tensor_types={}, manifest_sha256="m" * 64, created_at=time.time(),
        path=path or name[-8:],
    )  # fmt: skip
