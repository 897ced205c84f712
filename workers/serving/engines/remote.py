"""Models on another server that speaks the OpenAI API: a cluster of vLLM, or another Bitmill."""

from __future__ import annotations

from pathlib import Path

from app.domain.errors import EngineFailed
from app.domain.hardware import Device
from workers.serving.contract.capabilities import REMOTE
from workers.serving.engines.base import Address, Engine, EngineOptions, EngineSpec, RemoteAddress


class RemoteEngine(Engine):
    spec = EngineSpec(
        name="remote",
        formats=frozenset(),
        devices=frozenset(Device),
        requires={},
        options=frozenset({"remote"}),
        without=frozenset({"context_length", "threads"}),
        contract=REMOTE,
    )

    def command(self, artifact: Path, options: EngineOptions, address: Address) -> RemoteAddress:
        """Raises EngineFailed where the options name no server."""
        if options.remote is None:
            raise EngineFailed("a deployment on the engine 'remote' must say `remote` with a server and a model")
        return options.remote
