"""Checkpoints in safetensors, on transformers' continuous batching, in a process of our own.

The library's own server (`transformers serve`) refuses n, logprobs, stream_options, penalties and more, which
the library beneath it can carry.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from workers.serving.contract.capabilities import TRANSFORMERS
from workers.serving.engines.base import (
    API_KEY_VARIABLE,
    Address,
    Engine,
    EngineOptions,
    EngineProcess,
    EngineSpec,
)

MODULE = "workers.serving.engines.transformers_process"
INSTALL = "pip install 'bitmill[transformers]'"


class TransformersEngine(Engine):
    spec = EngineSpec(
        name="transformers",
        formats=frozenset({ArtifactFormat.SAFETENSORS}),
        devices=frozenset({Device.CPU, Device.GPU}),
        requires={"torch": INSTALL, "transformers": INSTALL, "accelerate": INSTALL, "llguidance": INSTALL},
        options=frozenset({"dtype"}),
        runtime_bytes=700 * 1024**2,
        contract=TRANSFORMERS,
    )
    cache_usage_path = "/cache_usage"

    def version(self) -> str | None:
        return version("transformers")

    def cache_usage(self, answer: str, options: EngineOptions) -> float | None:
        return float(answer)

    def command(self, artifact: Path, options: EngineOptions, address: Address) -> EngineProcess:
        arguments = {
            "--model": str(artifact),
            "--name": options.public_name,
            "--host": address.host,
            "--port": str(address.port),
            "--context-length": str(options.context_length),
            "--cache-tokens": str(options.cache_tokens),
            "--slots": str(options.slots),
            "--threads": str(options.threads),
            "--dtype": options.dtype or "auto",
        }
        flags = [part for pair in arguments.items() for part in pair]
        return EngineProcess(
            argv=[sys.executable, "-m", MODULE, *flags],
            environment={
                API_KEY_VARIABLE: address.api_key,
                "HF_HUB_OFFLINE": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                # Threads that spin while they wait starve every other process of the machine.
                "OMP_WAIT_POLICY": "passive",
            },
            health_path="/health",
            upstream_model=options.public_name,
        )
