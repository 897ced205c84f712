"""What vLLM is told as it starts: its memory, and room for adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EngineFailed
from app.domain.hardware import Device
from app.domain.serving import DeploymentOptions
from app.settings import Settings
from tests.fakes.engine import pretend_vllm
from workers.serving.engines.base import Address, EngineOptions, Guessing
from workers.serving.engines.llama_cpp import LlamaCppEngine
from workers.serving.engines.vllm import VllmEngine
from workers.serving.planning import engine_options
from workers.serving.served import ServedAdapter, ServedModel

# 40 tokens of a request in one slot of llama.cpp's server, and another slot at rest.
SLOTS = (
    '[{"is_processing": true, "n_prompt_tokens_cache": 10, "n_prompt_tokens_processed": 25,'
    ' "next_token": [{"n_decoded": 5}]}, {"is_processing": false}]'
)
ADDRESS = Address("127.0.0.1", 4242, "the-key")


def options(threads: int = 0) -> EngineOptions:
    return EngineOptions(public_name="org/m", context_length=1000, slots=8, threads=threads)


def flags(argv: list[str]) -> dict[str, str]:
    return dict(zip(argv[3::2], argv[4::2], strict=True))


def test_vllm_is_told_its_share_of_the_memory(settings: Settings, tmp_path: Path) -> None:
    config = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ '<tool_call>' }}")
    pretend_vllm(settings, Device.GPU)
    guess = Guessing(tokens=3)
    asked = EngineOptions(public_name="org/m", context_length=1000, slots=2, speculation=guess)
    process = VllmEngine(settings).command(tmp_path, asked, ADDRESS)
    given = dict(zip(process.argv, process.argv[1:], strict=False))
    # 2 layers, 2 × 64 values of 2 bytes each, for each of the 2 × 1000 tokens that the slots share, which fill 125
    # blocks of 16, and for three blocks more: one that is part empty for each slot, and one that is kept back.
    assert given["--kv-cache-memory-bytes"] == str(2 * 128 * 2 * 128 * 16)
    # Nor does it want most of the GPU to be free before it starts: other models may be on it.
    assert float(given["--gpu-memory-utilization"]) < 0.05
    assert given["--max-model-len"] == "512"
    assert given["--tool-call-parser"] == "hermes"
    assert json.loads(given["--speculative-config"])["num_speculative_tokens"] == 3
    assert "the-key" not in " ".join(process.argv)
    assert process.environment["VLLM_API_KEY"] == "the-key"


def write_adapter(folder: Path, rank: int) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return folder


def test_vllm_makes_room_for_the_adapters_that_are_expected(settings: Settings, tmp_path: Path) -> None:
    config = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pretend_vllm(settings, Device.GPU)
    engine = VllmEngine(settings)
    assert "--enable-lora" not in engine.command(tmp_path, options(), ADDRESS).argv
    assert engine.adapters_bytes(tmp_path, options()) == 0
    asked = replace(options(), adapter_rank=12)
    argv = engine.command(tmp_path, asked, ADDRESS).argv
    assert "--enable-lora" in argv
    assert argv[argv.index("--max-lora-rank") + 1] == "16"
    # Four matrices of 64 × 64 and three of 64 × 128 in each of 2 layers, of rank 16, in 2 bytes, for 4 adapters.
    assert engine.adapters_bytes(tmp_path, asked) == 2 * (4 * 128 + 3 * 192) * 16 * 2 * 4


@pytest.mark.parametrize(
    ("room", "rank", "count", "reason"),
    [
        (0, 8, 1, "room for adapters of none, and this one has rank 8; deploy the base with `adapter_rank` 8"),
        (16, 24, 1, "ranks up to 16, and this one has rank 24"),
        (16, 8, 2, "lays at most 1 over its base; deploy the base with engine 'transformers'"),
        (600, 600, 1, "rank 600 is beyond the 512"),
    ],
)
def test_vllm_refuses_an_adapter_without_room(
    room: int, rank: int, count: int, reason: str, settings: Settings, tmp_path: Path
) -> None:
    folders = tuple(write_adapter(tmp_path / str(number), rank) for number in range(count))
    with pytest.raises(EngineFailed, match=reason):
        VllmEngine(settings).require_adapter(replace(options(), adapter_rank=room), folders)


def test_vllm_takes_an_adapter_that_fits(settings: Settings, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", 16)
    engine = VllmEngine(settings)
    engine.require_adapter(replace(options(), adapter_rank=10), (folder,))
    assert engine.load_adapter("ft:a", (folder,)).body == {"lora_name": "ft:a", "lora_path": str(folder)}
    assert engine.unload_adapter("ft:a").body == {"lora_name": "ft:a"}


def test_llama_cpp_takes_no_adapter(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="takes none; deploy the base with engine 'transformers'"):
        LlamaCppEngine(settings).require_adapter(options(), (write_adapter(tmp_path / "adapter", 8),))


def test_a_base_makes_room_for_the_rank_of_the_adapter_that_it_is_loaded_for(
    settings: Settings, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter", 24)
    adapter = ServedAdapter("ft:a", (folder,))
    model = ServedModel("org/m", tmp_path, ArtifactFormat.SAFETENSORS, adapter=adapter)
    assert engine_options(model, settings).adapter_rank == 24
    assert engine_options(replace(model, options=DeploymentOptions(adapter_rank=64)), settings).adapter_rank == 64
    assert engine_options(replace(model, adapter=None), settings).adapter_rank == 0
