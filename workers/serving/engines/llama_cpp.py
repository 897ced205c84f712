"""GGUF models, on llama.cpp's own server: https://github.com/ggml-org/llama.cpp/tree/master/tools/server"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EngineFailed
from app.domain.hardware import Device
from app.storage.artifacts import gguf_file
from workers.serving.engines.base import (
    API_KEY_VARIABLE,
    Address,
    Engine,
    EngineOptions,
    EngineProcess,
    EngineSpec,
)

MODULE = "workers.serving.engines.llama_cpp_process"
# Below this, handing work to a second thread costs more than that thread saves.
SINGLE_THREAD_BYTES = 1024**3


class LlamaCppEngine(Engine):
    spec = EngineSpec(
        name="llama_cpp",
        formats=frozenset({ArtifactFormat.GGUF}),
        devices=frozenset({Device.CPU, Device.GPU}),
        requires={"xllamacpp": "pip install 'bitmill[llama-cpp]'"},
    )

    def command(self, artifact: Path, options: EngineOptions, address: Address) -> EngineProcess:
        """Raises EngineFailed where the folder holds no GGUF model."""
        model = model_file(artifact)
        arguments = {
            "--model": str(model),
            "--alias": options.public_name,
            "--host": address.host,
            "--port": str(address.port),
            "--context-length": str(options.context_length),
            "--cache-tokens": str(options.cache_tokens),
            "--slots": str(options.slots),
            "--threads": str(options.threads or _decode_threads(artifact)),
        }
        flags = [part for pair in arguments.items() for part in pair]
        return EngineProcess(
            argv=[sys.executable, "-m", MODULE, *flags],
            # Threads that spin while they wait starve every other process of the machine.
            environment={API_KEY_VARIABLE: address.api_key, "OMP_WAIT_POLICY": "passive"},
            health_path="/health",
            upstream_model=options.public_name,
        )


def model_file(folder: Path) -> Path:
    """`model.gguf`, or the first part of a split model. Raises EngineFailed."""
    found = gguf_file(folder)
    if found is None:
        raise EngineFailed("the artifact holds no model.gguf; delete the model and quantize it again")
    return found


def _decode_threads(folder: Path) -> int:
    size = sum(path.stat().st_size for path in folder.glob("*.gguf"))
    return 1 if size < SINGLE_THREAD_BYTES else os.cpu_count() or 1
