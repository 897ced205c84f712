"""An engine without a model: the real interface, a real process, and orders from the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.memory import MemoryEstimate
from app.settings import Settings
from workers.serving.engines.base import ANY_NUMBER, Address, Engine, EngineOptions, EngineProcess, EngineSpec
from workers.serving.engines.vllm_install import MARKER
from workers.serving.planning import Plan, Planner, engine_options, require_options
from workers.serving.served import ServedModel


class FakeEngine(Engine):
    """While the file `broken` exists, its processes die at start; with `gated`, they load when `gate` exists."""

    keeps_connections = False

    spec = EngineSpec(
        name="fake",
        formats=frozenset(ArtifactFormat),
        devices=frozenset({Device.CPU}),
        requires={},
        stacked_adapters=ANY_NUMBER,
    )

    def __init__(self, folder: Path, *, gated: bool = False) -> None:
        super().__init__(Settings(data_dir=folder))
        self.broken = folder / "broken"
        self.gate = folder / "gate"
        self.log = folder / "events"
        self.gated = gated

    def command(self, artifact: Path, options: EngineOptions, address: Address) -> EngineProcess:
        return EngineProcess(
            argv=[sys.executable, "-m", "tests.fakes.engine_process", address.host, str(address.port)],
            environment={
                "FAKE_ENGINE_KEY": address.api_key,
                "FAKE_ENGINE_EVENTS": str(self.log),
                "FAKE_ENGINE_BROKEN": str(self.broken),
                "FAKE_ENGINE_LOAD_GATE": str(self.gate) if self.gated else "",
            },
            health_path="/health",
            upstream_model="engine-name",
            keeps_connections=self.keeps_connections,
        )

    def events(self, kind: str) -> list[str]:
        """What its processes noted, of one kind, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.split()[0] == kind]

    def pids(self) -> list[int]:
        return [int(line.split()[1]) for line in self.events("start")]


def planner_for(engine: Engine, settings: Settings, needs: dict[str, int] | None = None) -> Planner:
    """Always this engine; `needs` says how many bytes each model takes, nothing where it is silent."""

    def plan(model: ServedModel) -> Plan:
        options = engine_options(model, settings)
        require_options(model.options, engine)
        estimate = MemoryEstimate(weights_bytes=(needs or {}).get(model.name, 0), cache_bytes=0, runtime_bytes=0)
        return Plan(engine, options, estimate)

    return plan


def pretend_vllm(settings: Settings, device: Device) -> None:
    """Looks as if it were installed."""
    folder = settings.engines_folder / "vllm"
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(json.dumps({"device": device.value, "version": "1.2.3"}))
