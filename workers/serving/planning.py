"""From what a deployment asks for to an engine and its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.domain.errors import InvalidParameter
from app.domain.evaluation import measured_speeds
from app.domain.memory import MemoryEstimate
from app.domain.serving import DeploymentOptions
from app.settings import Settings
from workers.serving.engines.base import Engine, EngineOptions, Guessing, RemoteAddress
from workers.serving.engines.registry import choose_engine, load_engine
from workers.serving.machine import Machine
from workers.serving.served import ServedModel
from workers.serving.sizing import estimate_memory, largest_rank

# Options that every engine takes; the others stand in the engine's spec.
COMMON = frozenset({"engine", "context_length", "slots", "threads", "keep_alive", "pinned"})
NOTHING = MemoryEstimate(weights_bytes=0, cache_bytes=0, runtime_bytes=0)


@dataclass(frozen=True, slots=True)
class Plan:
    engine: Engine
    options: EngineOptions
    estimate: MemoryEstimate


Planner = Callable[[ServedModel], Plan]


class EnginePlanner:
    """Chooses by the table in the registry, and counts what the choice will take."""

    def __init__(self, settings: Settings, machine: Machine) -> None:
        self.settings = settings
        self.machine = machine

    def __call__(self, model: ServedModel) -> Plan:
        """Raises InvalidParameter for options that the engine does not take, EngineFailed where none can."""
        engine = self._engine(model)
        require_options(model.options, engine)
        options = engine_options(model, self.settings)
        if options.remote is not None:
            return Plan(engine, options, NOTHING)
        return Plan(engine, options, estimate_memory(model.folder, options, engine))

    def _engine(self, model: ServedModel) -> Engine:
        if model.options.remote is not None:
            return load_engine("remote", self.settings)
        device = self.machine.device
        measured = measured_speeds(model.evaluations, device)
        wanted = model.options.engine
        return choose_engine(
            model.format, model.method, device, self.settings, folder=model.folder, wanted=wanted,
            measured=measured, adapters=len(model.adapter.folders) if model.adapter else 0,
        )  # fmt: skip


def require_options(options: DeploymentOptions, engine: Engine) -> None:
    """Raises InvalidParameter, naming the option, for one that the engine does not take."""
    given = {name for name, value in options if value is not None}
    for name in sorted(given - (COMMON - engine.spec.without) - engine.spec.options):
        raise InvalidParameter(f"the engine {engine.spec.name!r} does not take the option `{name}`", param=name)


def engine_options(model: ServedModel, settings: Settings) -> EngineOptions:
    """The deployment's own options, else the settings'. Raises InvalidParameter for an unknown remote server."""
    asked = model.options
    guessing = Guessing(tokens=asked.speculation.tokens, draft=model.draft) if asked.speculation else None
    return EngineOptions(
        public_name=model.name,
        context_length=asked.context_length or settings.serving_context_length,
        slots=asked.slots or settings.serving_slots,
        threads=settings.serving_threads if asked.threads is None else asked.threads,
        dtype=asked.dtype,
        speculation=guessing,
        remote=_remote(asked, settings),
        adapter_rank=asked.adapter_rank or (largest_rank(model.adapter.folders) if model.adapter else 0),
    )


def _remote(asked: DeploymentOptions, settings: Settings) -> RemoteAddress | None:
    if asked.remote is None:
        return None
    server = settings.remotes.get(asked.remote.server)
    if server is None:
        known = ", ".join(sorted(settings.remotes)) or "none"
        raise InvalidParameter(
            f"the remote server {asked.remote.server!r} is not among those of BITMILL_REMOTES ({known})",
            param="remote.server",
        )
    key = server.api_key.get_secret_value() if server.api_key else None
    return RemoteAddress(server.url, asked.remote.model, key)
