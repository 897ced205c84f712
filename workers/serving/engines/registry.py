"""Where each engine lives, imported on demand, and which one serves what."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Final

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EngineFailed, InvalidParameter
from app.domain.hardware import Device
from app.settings import Settings
from workers.serving.engines.base import Engine

REGISTRY: Final[dict[str, str]] = {
    "llama_cpp": "workers.serving.engines.llama_cpp:LlamaCppEngine",
    "transformers": "workers.serving.engines.transformers:TransformersEngine",
    "vllm": "workers.serving.engines.vllm:VllmEngine",
    "remote": "workers.serving.engines.remote:RemoteEngine",
}

# The first that is installed and loads the artifact serves it. On a CPU transformers comes first: it answers
# seconds after a request, vLLM half a minute after.
PREFERENCE: Final[dict[tuple[ArtifactFormat, Device], tuple[str, ...]]] = {
    (ArtifactFormat.GGUF, Device.CPU): ("llama_cpp",),
    (ArtifactFormat.GGUF, Device.GPU): ("llama_cpp",),
    (ArtifactFormat.SAFETENSORS, Device.CPU): ("transformers", "vllm"),
    (ArtifactFormat.SAFETENSORS, Device.GPU): ("vllm", "transformers"),
}


NOTHING_MEASURED: Final[Mapping[str, float]] = MappingProxyType({})


def load_engine(name: str, settings: Settings) -> Engine:
    """Raises KeyError for a name that is not in the registry."""
    module, _, attribute = REGISTRY[name].partition(":")
    engine: Engine = getattr(import_module(module), attribute)(settings)
    return engine


def choose_engine(
    artifact_format: ArtifactFormat,
    method: str | None,
    device: Device,
    settings: Settings,
    *,
    folder: Path,
    wanted: str | None,
    measured: Mapping[str, float] = NOTHING_MEASURED,
    adapters: int = 0,
) -> Engine:
    """The engine that was asked for, else the first of the table that can load the artifact in `folder`.

    `measured` has tokens per second of engines that were timed with this model: where several were, the fastest of
    them comes before the table. Engines that do not lay so many `adapters` over each other are left out. Raises
    InvalidParameter for an engine that is unknown or cannot load such an artifact, EngineFailed where none is
    installed.
    """
    if wanted is not None:
        return _wanted(wanted, artifact_format, method, device, settings, folder)
    reasons = []
    for name in _ranked(PREFERENCE[artifact_format, device], measured):
        engine = load_engine(name, settings)
        if not engine.spec.loads(artifact_format, method, device):
            continue
        if adapters > engine.spec.stacked_adapters:
            continue
        try:
            engine.check_environment()
        except EngineFailed as error:
            reasons.append(error.message)
            continue
        obstacle = engine.obstacle(folder, device)
        if obstacle is None:
            return engine
        reasons.append(obstacle)
    raise EngineFailed("; ".join(reasons) or f"no engine loads {method} artifacts on this machine's {device.value}")


def _ranked(names: tuple[str, ...], measured: Mapping[str, float]) -> list[str]:
    timed = [name for name in names if name in measured]
    if len(timed) < 2:
        return list(names)  # one measurement says nothing of the others
    fastest = max(timed, key=lambda name: measured[name])
    return [fastest, *(name for name in names if name != fastest)]


def _wanted(
    name: str, artifact_format: ArtifactFormat, method: str | None, device: Device, settings: Settings, folder: Path
) -> Engine:
    if name not in REGISTRY or name == "remote":
        known = ", ".join(each for each in REGISTRY if each != "remote")
        raise InvalidParameter(f"the engine {name!r} is unknown for stored models; use one of {known}", param="engine")
    engine = load_engine(name, settings)
    if not engine.spec.loads(artifact_format, method, device):
        made = f" made by {method!r}" if method else ""
        raise InvalidParameter(
            f"the engine {name!r} does not load {artifact_format.value} models{made} on a {device.value}; leave "
            f"`engine` out to have one chosen",
            param="engine",
        )
    engine.check_environment()
    if obstacle := engine.obstacle(folder, device):
        raise InvalidParameter(f"{obstacle}; leave `engine` out to have one chosen", param="engine")
    return engine
