"""Checkpoints in safetensors, on transformers' continuous batching, in a process of our own.

The library's own server (`transformers serve`) refuses n, logprobs, stream_options, penalties and more, which
the library beneath it can carry.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.memory import KERNEL_BYTES, RUNTIME_BYTES, pass_tokens
from app.storage.tensor_headers import read_tensor_infos
from workers.serving.contract.capabilities import TRANSFORMERS
from workers.serving.engines.base import (
    ANY_NUMBER,
    API_KEY_VARIABLE,
    Address,
    Engine,
    EngineOptions,
    EngineProcess,
    EngineSpec,
)
from workers.serving.sizing import stored_bytes

MODULE = "workers.serving.engines.transformers_process"
INSTALL = "pip install 'bitmill[transformers]'"


# What holds several weights in one number, or one weight in eight bits.
PACKED_DTYPES: Final = frozenset({"I8", "U8", "I32", "F8_E4M3", "F8_E5M2"})


class TransformersEngine(Engine):
    spec = EngineSpec(
        name="transformers",
        formats=frozenset({ArtifactFormat.SAFETENSORS}),
        devices=frozenset({Device.CPU, Device.GPU}),
        requires={"torch": INSTALL, "transformers": INSTALL, "accelerate": INSTALL, "llguidance": INSTALL},
        options=frozenset({"dtype"}),
        runtime_bytes=RUNTIME_BYTES["transformers"],
        contract=TRANSFORMERS,
        stacked_adapters=ANY_NUMBER,
    )
    cache_usage_path = "/cache_usage"
    progress_path = "/passes"

    def version(self) -> str | None:
        return version("transformers")

    def cache_usage(self, answer: str, options: EngineOptions) -> float | None:
        return float(answer)

    def weights_bytes(self, artifact: Path) -> int:
        """transformers unpacks compressed-tensors' layouts to 16 bits as it loads them."""
        quantization = _quantization(artifact)
        stored = stored_bytes(artifact)
        if quantization.get("quant_method") != "compressed-tensors":
            return stored
        tensors = [info for file in artifact.glob("*.safetensors") for info in read_tensor_infos(file).values()]
        packed = sum(info.end - info.start for info in tensors if info.dtype in PACKED_DTYPES)
        groups = quantization.get("config_groups") or {}
        bits = max((group["weights"]["num_bits"] for group in groups.values() if group.get("weights")), default=8)
        return stored + packed * (16 - bits) // bits

    def runtime_bytes(self, artifact: Path) -> int:
        kernels = _quantization(artifact).get("quant_method") in ("gptq", "awq")
        return self.spec.runtime_bytes + (KERNEL_BYTES if kernels else 0)

    def pass_bytes(self, options: EngineOptions) -> int:
        """A mask in 16 bits, of every token in the pass against every one in the cache and the pass."""
        tokens = pass_tokens(options.slots)
        return tokens * (options.cache_tokens + tokens) * 2

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
                # oneDNN keeps what it compiled for each number of tokens in a batch, 1,024 such by default, with a
                # buffer each: of LLM.int8() 0.8 GB after twelve numbers, and no faster.
                "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
            },
            health_path="/health",
            upstream_model=options.public_name,
            keeps_connections=True,
        )


def _quantization(artifact: Path) -> dict[str, Any]:
    config = artifact / "config.json"
    return (json.loads(config.read_text()).get("quantization_config") or {}) if config.is_file() else {}
