"""Checkpoints in safetensors, on vLLM, in a virtual environment of its own: its libraries' versions are not ours.

https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from app.connections import SERVERS_KEEP_SECONDS
from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EngineFailed
from app.domain.hardware import Device
from app.domain.memory import RUNTIME_BYTES, AttentionShape, adapter_bytes
from workers.serving.contract.capabilities import VLLM
from workers.serving.engines.base import (
    Address,
    Engine,
    EngineOptions,
    EngineProcess,
    EngineSpec,
    Told,
)
from workers.serving.engines.vllm_install import MARKER
from workers.serving.sizing import cache_bytes, largest_rank, read_shape

GIB: Final = 1024**3
# What its cache is handed out in.
BLOCK_TOKENS: Final = {Device.CPU: 128, Device.GPU: 16}
# Trainings whose whole models, with adapters merged into them, have plain weights of 16 bits.
TRAINED: Final = frozenset({"full", "lora", "qlora"})
# gptq's layout is also what hqq and autoround write.
ANYWHERE: Final = TRAINED | {"none", "int8", "int4", "gptq", "awq", "hqq", "autoround", "qat"}
# It has kernels for GPTQ's layout of so many bits, if rounding is symmetric.
GPTQ_BITS: Final = {Device.CPU: frozenset({4}), Device.GPU: frozenset({4, 8})}
# The ranks that it can make room for; of how many adapters one batch may have requests; and how many it keeps in the
# machine's memory, so that they need not be read again.
RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
ADAPTERS_AT_ONCE: Final = 4
ADAPTERS_KEPT: Final = 16
# The lines of its metrics that count tokens: of each pass, and of each request when it ends.
WORK_DONE: Final = r"^vllm:(?:iteration_tokens_total_sum|prompt_tokens_total|generation_tokens_total)\{.*$"
# What a chat template contains, and the parser that reads the calls of models with such a template.
TOOL_PARSERS: Final = {
    "<tool_call>": "hermes",
    "[TOOL_CALLS]": "mistral",
    "<|python_tag|>": "llama3_json",
    "<|eom_id|>": "llama3_json",
}


class VllmEngine(Engine):
    spec = EngineSpec(
        name="vllm",
        formats=frozenset({ArtifactFormat.SAFETENSORS}),
        devices=frozenset(Device),
        requires={},
        # No CPU kernels exist for bitsandbytes' and the 4-bit floating-point layouts. There are such for FP8, but on
        # processors without FP8 of their own oneDNN multiplies 512 tokens by one layer's weights in seconds.
        methods={Device.CPU: ANYWHERE, Device.GPU: ANYWHERE | {"bitsandbytes", "fp4", "fp8"}},
        options=frozenset({"dtype", "speculation", "adapter_rank"}),
        without=frozenset({"threads"}),  # it binds its own to the cores that it may use
        runtime_bytes=RUNTIME_BYTES["vllm"],
        contract=VLLM,
        stacked_adapters=1,
        dialect="vllm",
    )
    cache_usage_path = "/metrics"
    progress_path = "/metrics"

    @property
    def folder(self) -> Path:
        return self.settings.engines_folder / "vllm"

    def check_environment(self) -> None:
        if not (self.folder / MARKER).is_file():
            raise EngineFailed(
                f"the engine 'vllm' is not installed in {self.folder}; install it with: bitmill engines install vllm "
                f"(with --cpu where there is no GPU)"
            )

    def obstacle(self, artifact: Path, device: Device) -> str | None:
        quantization = json.loads((artifact / "config.json").read_text()).get("quantization_config") or {}
        if quantization.get("quant_method") != "gptq":
            return None
        rules = (quantization.get("dynamic") or {}).values()
        bits = {quantization["bits"], *(rule["bits"] for rule in rules if "bits" in rule)}
        symmetric = quantization.get("sym", True)
        if bits <= GPTQ_BITS[device] and symmetric:
            return None
        can, has = (" and ".join(map(str, sorted(numbers))) for numbers in (GPTQ_BITS[device], bits))
        return (
            f"the engine 'vllm' loads GPTQ's layout on a {device.value} with {can} bits, symmetric; this model has "
            f"{has}, {'symmetric' if symmetric else 'asymmetric'}"
        )

    def version(self) -> str | None:
        return str(self._installed()["version"])

    def cache_usage(self, answer: str, options: EngineOptions) -> float | None:
        found = re.search(r"^vllm:kv_cache_usage_perc\{[^}]*\} (\S+)$", answer, flags=re.MULTILINE)
        return float(found[1]) if found else None

    def work_done(self, answer: str) -> object | None:
        """The tokens that passed through it, prompts and answers; None where this version counts neither."""
        return re.findall(WORK_DONE, answer, flags=re.MULTILINE) or None

    def cache_bytes(self, shape: AttentionShape | None, options: EngineOptions, bytes_per_value: int) -> int:
        if shape is None:
            return GIB
        # The last block of a request is part empty, one block is kept back, and layers with a window, too, need room
        # for a whole prompt.
        block = BLOCK_TOKENS[self._device]
        blocks = -(-options.cache_tokens // block) + options.slots + 1
        return replace(shape, sliding_layers=0).cache_bytes(blocks * block, bytes_per_value=bytes_per_value)

    def adapters_bytes(self, artifact: Path, options: EngineOptions) -> int:
        if not options.adapter_rank:
            return 0
        config = json.loads((artifact / "config.json").read_text())
        return ADAPTERS_AT_ONCE * adapter_bytes(config, _room_for_rank(options))

    def require_adapter(self, options: EngineOptions, folders: tuple[Path, ...]) -> None:
        super().require_adapter(options, folders)
        rank = largest_rank(folders)
        if rank > _room_for_rank(options):
            has = f"ranks up to {_room_for_rank(options)}" if options.adapter_rank else "none"
            raise EngineFailed(
                f"the adapter's base is loaded with room for adapters of {has}, and this one has rank {rank}; deploy "
                f"the base with `adapter_rank` {rank}"
            )

    def load_adapter(self, name: str, folders: tuple[Path, ...]) -> Told:
        return Told("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folders[0])})

    def unload_adapter(self, name: str) -> Told:
        return Told("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def command(self, artifact: Path, options: EngineOptions, address: Address) -> EngineProcess:
        python, models = self.folder / "bin" / "python", options.models(artifact)
        flags = {
            "--model": str(artifact),
            "--served-model-name": options.public_name,
            "--host": address.host,
            "--port": str(address.port),
            "--max-model-len": str(_context_length(artifact, options)),
            "--max-num-seqs": str(options.slots),
            "--dtype": options.dtype or "auto",
            "--kv-cache-memory-bytes": str(cache_bytes(self, options, models, map(read_shape, models))),
            # The library that checks grammars here follows them there.
            "--structured-outputs-config": json.dumps({"backend": "guidance"}),
        }
        if self._device is not Device.CPU:
            # At its start it demands that this share of the GPU be free, 0.92 by default, which leaves no place for
            # a second model. The cache's size is given, and the pool has counted: so it may demand nothing.
            flags["--gpu-memory-utilization"] = "0.01"
        if options.speculation is not None:
            flags["--speculative-config"] = json.dumps(_speculative(options))
        if options.adapter_rank:
            flags["--max-lora-rank"] = str(_room_for_rank(options))
            flags["--max-loras"] = str(ADAPTERS_AT_ONCE)
            flags["--max-cpu-loras"] = str(ADAPTERS_KEPT)
        argv = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
        argv += [part for pair in flags.items() for part in pair] + _tool_flags(artifact)
        argv.append("--disable-uvicorn-access-log")
        argv += ["--enable-lora"] if options.adapter_rank else []
        return EngineProcess(
            argv=argv,
            environment=self._environment(address),
            health_path="/health",
            upstream_model=options.public_name,
            keeps_connections=True,
        )

    def _environment(self, address: Address) -> dict[str, str]:
        return {
            "VLLM_API_KEY": address.api_key,
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(SERVERS_KEEP_SECONDS),
            # Threads that spin while they wait starve every other process of the machine, its own included.
            "OMP_WAIT_POLICY": "passive",
            # It listens on loopback, and only the serving host has the key: nobody else can tell it to.
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "HF_HUB_OFFLINE": "1",
            # What it compiles at a model's first load makes the next load quick.
            "VLLM_CACHE_ROOT": str(self.settings.cache_folder / "vllm"),
            # Its own tools, such as ninja, before those of this environment.
            "PATH": f"{self.folder / 'bin'}:{os.environ.get('PATH', '')}",
        }

    @property
    def _device(self) -> Device:
        """What it was installed for."""
        return Device(self._installed()["device"])

    def _installed(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / MARKER).read_text())
        return found


def _room_for_rank(options: EngineOptions) -> int:
    """The smallest rank that it knows and that is enough. Raises EngineFailed."""
    enough = [rank for rank in (0, *RANKS) if rank >= options.adapter_rank]
    if not enough:
        raise EngineFailed(
            f"an adapter of rank {options.adapter_rank} is beyond the {RANKS[-1]} of the engine 'vllm'; deploy its "
            f"base with engine 'transformers'"
        )
    return enough[0]


def _context_length(artifact: Path, options: EngineOptions) -> int:
    """vLLM refuses more than the model was made for."""
    config = json.loads((artifact / "config.json").read_text())
    own = (config.get("text_config") or config).get("max_position_embeddings")
    return min(options.context_length, own) if isinstance(own, int) else options.context_length


def _speculative(options: EngineOptions) -> dict[str, Any]:
    assert options.speculation is not None  # noqa: S101 -- asked by the caller
    guess = {"num_speculative_tokens": options.speculation.tokens}
    if options.speculation.draft is None:
        return {"method": "ngram", "prompt_lookup_max": 4, **guess}
    return {"method": "draft_model", "model": str(options.speculation.draft), **guess}


def _tool_flags(artifact: Path) -> list[str]:
    """Without a parser that fits the template, a model's calls would come back as text."""
    template = artifact / "chat_template.jinja"
    text = template.read_text() if template.is_file() else ""
    if not text and (config := artifact / "tokenizer_config.json").is_file():
        text = json.dumps(json.loads(config.read_text()).get("chat_template") or "", ensure_ascii=False)
    parser = next((parser for mark, parser in TOOL_PARSERS.items() if mark in text), None)
    return ["--enable-auto-tool-choice", "--tool-call-parser", parser] if parser else []
