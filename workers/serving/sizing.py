"""What a model will take before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.domain.memory import (
    CACHE_BYTES_PER_VALUE,
    AttentionShape,
    MemoryEstimate,
    attention_shape,
    attention_shape_of_gguf,
)
from app.storage.artifacts import gguf_file
from app.storage.tensor_headers import read_tensor_infos
from workers.gguf_safety import read_keys

if TYPE_CHECKING:  # engines use this module to say what they need
    from workers.serving.engines.base import Engine, EngineOptions

WEIGHTS: Final = ("*.safetensors", "*.gguf")


def estimate_memory(artifact: Path, options: EngineOptions, engine: Engine) -> MemoryEstimate:
    """Weights as the engine holds them, a cache for every token that the slots share, and the engine's own needs."""
    models = options.models(artifact)
    shape, *drafts = map(read_shape, models)
    widened = _widened_bytes(artifact) if options.dtype == "float32" else 0
    return MemoryEstimate(
        weights_bytes=widened + sum(map(engine.weights_bytes, models)),
        cache_bytes=cache_bytes(engine, options, models, [shape, *drafts]),
        runtime_bytes=engine.runtime_bytes(artifact)
        + engine.pass_bytes(options)
        + engine.adapters_bytes(artifact, options)
        + (shape.scratch_bytes if shape else 0),
    )


def cache_bytes(
    engine: Engine, options: EngineOptions, models: Sequence[Path], shapes: Iterable[AttentionShape | None]
) -> int:
    """What the engine sets aside for keys and values of the models, whose `shapes` these are."""
    return sum(
        engine.cache_bytes(shape, options, _bytes_per_value(model, options.dtype))
        for model, shape in zip(models, shapes, strict=True)
    )


def _widened_bytes(artifact: Path) -> int:
    """What weights of 16 bits take more when they are loaded in 32."""
    tensors = [info for file in artifact.glob("*.safetensors") for info in read_tensor_infos(file).values()]
    return sum(info.end - info.start for info in tensors if info.dtype in ("BF16", "F16"))


def _bytes_per_value(artifact: Path, dtype: str | None) -> int:
    """Of keys and values: as precise as the computation, which follows the checkpoint where nobody says otherwise."""
    config = artifact / "config.json"
    if dtype is None and gguf_file(artifact) is None and config.is_file():
        given = json.loads(config.read_text())
        dtype = given.get("dtype") or given.get("torch_dtype")
    return 4 if dtype == "float32" else CACHE_BYTES_PER_VALUE


def stored_bytes(artifact: Path) -> int:
    """The size of an artifact's weights on disk."""
    return sum(path.stat().st_size for pattern in WEIGHTS for path in artifact.glob(pattern))


def largest_rank(adapter_folders: Iterable[Path]) -> int:
    """Of adapters in peft's format; 0 where they are not there, which the engine that is told to load them will say."""
    configs = [folder / "adapter_config.json" for folder in adapter_folders]
    return max((json.loads(config.read_text())["r"] for config in configs if config.is_file()), default=0)


def read_shape(artifact: Path) -> AttentionShape | None:
    """From `config.json`, or from the GGUF file's keys. None where neither says enough."""
    gguf, config = gguf_file(artifact), artifact / "config.json"
    try:
        if gguf is not None:
            return attention_shape_of_gguf(read_keys(gguf))
        return attention_shape(json.loads(config.read_text())) if config.is_file() else None
    except ValueError:
        return None  # not readable as such: the engine, which is told to load it, will say why
