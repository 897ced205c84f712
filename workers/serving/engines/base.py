"""What an engine is: a program that loads one artifact and speaks the OpenAI API on a port of its own.

An engine's class only says how to start that program. It imports no ML library, because the serving host,
which uses it, only supervises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EngineFailed
from app.domain.hardware import Device

# How many requests of full length the key-value cache holds at once. Slots share it, so that many short
# requests run together without memory for as many long ones.
CACHED_CONTEXTS = 4

API_KEY_VARIABLE = "BITMILL_ENGINE_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """`name` is the registry's key; `requires` maps each top-level module to what installs it."""

    name: str
    formats: frozenset[ArtifactFormat]
    devices: frozenset[Device]
    requires: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a model is loaded. `threads` = 0 lets the engine choose."""

    public_name: str
    context_length: int
    slots: int
    threads: int = 0

    @property
    def cache_tokens(self) -> int:
        """The size, in tokens, of the key-value cache that all slots share."""
        return self.context_length * min(self.slots, CACHED_CONTEXTS)


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens, and the key that it demands of whoever speaks to it."""

    host: str
    port: int
    api_key: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProcess:
    """A command line. The key travels in `environment`: arguments are readable by every local user."""

    argv: list[str]
    environment: dict[str, str] = field(repr=False)
    health_path: str
    upstream_model: str


class Engine(ABC):
    spec: ClassVar[EngineSpec]

    def check_environment(self) -> None:
        """Raises EngineFailed, saying what to install."""
        for module, installer in self.spec.requires.items():
            if find_spec(module) is None:
                raise EngineFailed(
                    f"the engine {self.spec.name!r} needs {module}, which this serving host does not have; "
                    f"install it with: {installer}"
                )

    @abstractmethod
    def command(self, artifact: Path, options: EngineOptions, address: Address) -> EngineProcess:
        """What to run so that the artifact in this folder is served at `address`."""
