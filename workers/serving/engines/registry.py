"""Where each engine lives, imported on demand, and which one serves which format."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from app.domain.artifacts import ArtifactFormat
from workers.serving.engines.base import Engine

REGISTRY: Final[dict[str, str]] = {
    "llama_cpp": "workers.serving.engines.llama_cpp:LlamaCppEngine",
    "transformers": "workers.serving.engines.transformers:TransformersEngine",
}

ENGINE_OF_FORMAT: Final[dict[ArtifactFormat, str]] = {
    ArtifactFormat.GGUF: "llama_cpp",
    ArtifactFormat.SAFETENSORS: "transformers",
}


def load_engine(name: str) -> Engine:
    """Raises KeyError for a name that is not in the registry."""
    module, _, attribute = REGISTRY[name].partition(":")
    engine: Engine = getattr(import_module(module), attribute)()
    return engine


def engine_for(artifact_format: ArtifactFormat) -> Engine:
    return load_engine(ENGINE_OF_FORMAT[artifact_format])
