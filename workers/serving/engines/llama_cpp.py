"""GGUF models, on llama.cpp's own server: https://github.com/ggml-org/llama.cpp/tree/master/tools/server"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EngineFailed
from app.domain.hardware import Device
from app.domain.memory import RUNTIME_BYTES
from app.storage.artifacts import gguf_file
from workers.gguf_safety import read_keys
from workers.serving.contract.capabilities import LLAMA_CPP
from workers.serving.engines.base import (
    API_KEY_VARIABLE,
    Address,
    Engine,
    EngineOptions,
    EngineProcess,
    EngineSpec,
)

MODULE = "workers.serving.engines.llama_cpp_process"
INSTALL = "pip install 'bitmill[llama-cpp]'"


class LlamaCppEngine(Engine):
    spec = EngineSpec(
        name="llama_cpp",
        formats=frozenset({ArtifactFormat.GGUF}),
        devices=frozenset({Device.CPU, Device.GPU}),
        requires={"xllamacpp": INSTALL, "llguidance": INSTALL},
        options=frozenset({"speculation"}),
        runtime_bytes=RUNTIME_BYTES["llama_cpp"],
        contract=LLAMA_CPP,
        dialect="llama_cpp",
    )
    cache_usage_path = "/slots"
    # It changes with each token, and with each 2,048 of a prompt. /health says nothing of the loop that generates.
    progress_path = "/slots"

    def version(self) -> str | None:
        return version("xllamacpp")

    def cache_usage(self, answer: str, options: EngineOptions) -> float | None:
        """The tokens of requests that are worked on; what idle slots remember gives way to them."""
        held = 0
        for slot in json.loads(answer):
            if slot["is_processing"]:
                held += slot["n_prompt_tokens_cache"] + slot["n_prompt_tokens_processed"]
                held += sum(token["n_decoded"] for token in slot["next_token"])
        return min(held / options.cache_tokens, 1.0)

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
            "--threads": str(options.threads),
            "--measured": str(self.settings.cache_folder / "threads"),
        }
        if options.speculation is not None:
            arguments["--guess"] = str(options.speculation.tokens)
            if options.speculation.draft is not None:
                arguments["--draft"] = str(model_file(options.speculation.draft))
        if _makes_embeddings(model):
            arguments["--embedding"] = "1"
        flags = [part for pair in arguments.items() for part in pair]
        return EngineProcess(
            argv=[sys.executable, "-m", MODULE, *flags],
            # Threads that spin while they wait starve every other process of the machine.
            environment={API_KEY_VARIABLE: address.api_key, "OMP_WAIT_POLICY": "passive"},
            health_path="/health",
            upstream_model=options.public_name,
            # An idle connection would hold one of its few HTTP threads.
            keeps_connections=False,
        )


def _makes_embeddings(model: Path) -> bool:
    """Whether the file says how a text's vectors become one, which only models for embeddings do."""
    try:
        keys = read_keys(model)
    except ValueError:
        return False  # the engine, which is told to load it, will say what is wrong with it
    return bool(keys.get(f"{keys.get('general.architecture')}.pooling_type"))


def model_file(folder: Path) -> Path:
    """`model.gguf`, or the first part of a split model. Raises EngineFailed."""
    found = gguf_file(folder)
    if found is None:
        raise EngineFailed("the artifact holds no model.gguf; delete the model and quantize it again")
    return found
