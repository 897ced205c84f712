"""Every dialect by its name, as engines' specs give it, imported on demand."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Final

from workers.serving.dialects.base import Dialect

REGISTRY: Final[dict[str, str]] = {
    "openai": "workers.serving.dialects.openai:OpenAiDialect",
    "llama_cpp": "workers.serving.dialects.llama_cpp:LlamaCppDialect",
    "vllm": "workers.serving.dialects.vllm:VllmDialect",
}


@cache
def load_dialect(name: str) -> Dialect:
    """Raises KeyError for a name that is not in the registry."""
    module, _, attribute = REGISTRY[name].partition(":")
    dialect: Dialect = getattr(import_module(module), attribute)()
    return dialect
