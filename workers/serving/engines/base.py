"""What an engine is: a program that loads one artifact and speaks the OpenAI API on a port of its own.

An engine's class only says how to start that program. It imports no ML library, because the serving host,
which uses it, only supervises.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EngineFailed
from app.domain.hardware import Device
from app.domain.memory import AttentionShape, shared_tokens
from app.settings import Settings
from workers.serving.contract.capabilities import EngineContract
from workers.serving.sizing import stored_bytes

ANY_NUMBER: Final = sys.maxsize
API_KEY_VARIABLE = "BITMILL_ENGINE_API_KEY"
# For a server that is not known to keep connections for as long.
CLOSING: Final = {"connection": "close"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine can do, as data.

    `name` is the registry's key; `requires` maps each top-level module to what installs it. `methods` names the
    quantization methods that it loads on a device: without an entry all of its formats. `options` are the
    deployment options that it takes beyond context length, slots and threads, `without` those of these three that it
    does not take. `runtime_bytes` is what a process of it takes beside weights and cache. `stacked_adapters` is how
    many adapters it lays over each other beside a running model, for one that was trained on another's result; 0
    where it takes none. `contract` says which requests it takes, and `dialect` is the key of what makes good where
    its server differs from OpenAI's.
    """

    name: str
    formats: frozenset[ArtifactFormat]
    devices: frozenset[Device]
    requires: dict[str, str]
    methods: Mapping[Device, frozenset[str]] = field(default_factory=dict)
    options: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    runtime_bytes: int = 0
    contract: EngineContract = field(default_factory=EngineContract)
    stacked_adapters: int = 0
    dialect: str = "openai"

    def view(self) -> dict[str, Any]:
        return {
            "formats": sorted(self.formats),
            "devices": sorted(self.devices),
            "methods": {device.value: sorted(names) for device, names in self.methods.items()},
            "options": sorted(self.options),
        }

    def loads(self, artifact_format: ArtifactFormat, method: str | None, device: Device) -> bool:
        """Whether it takes such an artifact there; `method` None is a model that nobody quantized."""
        known = self.methods.get(device)
        fits = known is None or method is None or method in known
        return artifact_format in self.formats and device in self.devices and fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Guessing:
    """Speculative decoding: by the text so far, or by a draft model in the folder or file `draft`."""

    tokens: int
    draft: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a model is loaded. `threads` 0 and `dtype` None let the engine choose.

    `adapter_rank` is the largest rank of the adapters that it is to make room for, 0 where none are expected.
    """

    public_name: str
    context_length: int
    slots: int
    threads: int = 0
    dtype: str | None = None
    speculation: Guessing | None = None
    remote: RemoteAddress | None = None
    adapter_rank: int = 0

    @property
    def cache_tokens(self) -> int:
        """The size, in tokens, of the key-value cache that all slots share."""
        return shared_tokens(self.context_length, self.slots)

    def models(self, artifact: Path) -> list[Path]:
        """What is loaded: the artifact, and the draft model if there is one."""
        draft = self.speculation.draft if self.speculation else None
        return [artifact, draft] if draft else [artifact]


@dataclass(frozen=True, slots=True)
class RemoteAddress:
    """A model on a server that is not ours to start. `url` ends where `/chat/completions` would follow."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)


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
    """A command line. The key travels in `environment`: arguments are readable by every local user.

    `keeps_connections` says that its server can be left with idle ones, as long as servers of ours are.
    """

    argv: list[str]
    environment: dict[str, str] = field(repr=False)
    health_path: str
    upstream_model: str
    keeps_connections: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """What a running engine is told that is no client's request."""

    method: str
    path: str
    body: dict[str, Any] | None = None


class Engine(ABC):
    spec: ClassVar[EngineSpec]
    # Where a running engine tells how full its cache is, if it does.
    cache_usage_path: ClassVar[str | None] = None
    # Where it tells how much it has done, if it does: a slow engine is known from one that hangs by this.
    progress_path: ClassVar[str | None] = None

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def check_environment(self) -> None:
        """Raises EngineFailed, saying what to install."""
        for module, installer in self.spec.requires.items():
            if find_spec(module) is None:
                raise EngineFailed(
                    f"the engine {self.spec.name!r} needs {module}, which this serving host does not have; "
                    f"install it with: {installer}"
                )

    def obstacle(self, artifact: Path, device: Device) -> str | None:
        """Why it cannot load this artifact, though it takes the format and the method; None where it can."""
        return None

    def version(self) -> str | None:
        """The version of the software that generates; None where there is none to tell."""
        return None

    def cache_usage(self, answer: str, options: EngineOptions) -> float | None:
        """The used share of the cache, 0 to 1, from what `cache_usage_path` answered."""
        return None

    def work_done(self, answer: str) -> object | None:
        """What changes while it works, from what `progress_path` answered; None where it does not tell."""
        return answer

    def weights_bytes(self, artifact: Path) -> int:
        """What the weights take once they are loaded: as much as on disk, unless an engine unpacks them."""
        return stored_bytes(artifact)

    def cache_bytes(self, shape: AttentionShape | None, options: EngineOptions, bytes_per_value: int) -> int:
        """What keys and values take, of all tokens that the slots share; `shape` None: the model says too little."""
        if shape is None:
            return 0
        return shape.cache_bytes(options.cache_tokens, sequences=options.slots, bytes_per_value=bytes_per_value)

    def runtime_bytes(self, artifact: Path) -> int:
        """What a process takes beside weights and cache."""
        return self.spec.runtime_bytes

    def pass_bytes(self, options: EngineOptions) -> int:
        """What it sets aside for the inputs of one pass."""
        return 0

    def adapters_bytes(self, artifact: Path, options: EngineOptions) -> int:
        """What it sets aside for adapters as it starts."""
        return 0

    def require_adapter(self, options: EngineOptions, folders: tuple[Path, ...]) -> None:
        """Raises EngineFailed where a model that was loaded with these options cannot have the adapter beside it."""
        stacked = self.spec.stacked_adapters
        if len(folders) > stacked:
            takes = f"lays at most {stacked} over its base" if stacked else "takes none"
            raise EngineFailed(
                f"the engine {self.spec.name!r} on which the adapter's base is loaded {takes}; deploy the base with "
                f"engine 'transformers'"
            )

    def load_adapter(self, name: str, folders: tuple[Path, ...]) -> Told:
        """What loads an adapter, which lies in peft's format in the folders, beside the running model."""
        return Told("POST", "/adapters", {"name": name, "folders": list(map(str, folders))})

    def unload_adapter(self, name: str) -> Told:
        return Told("DELETE", f"/adapters/{quote(name, safe='')}")

    @abstractmethod
    def command(self, artifact: Path, options: EngineOptions, address: Address) -> EngineProcess | RemoteAddress:
        """What to run so that the artifact in this folder is served at `address`, or where it is served already."""
