"""What engines are started with, and which one serves what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EngineFailed, InvalidParameter
from app.domain.evaluation import measured_speeds
from app.domain.fine_tuning import Adapter
from app.domain.hardware import Device
from app.domain.quantization.catalog import CATALOG
from app.domain.serving import DeploymentOptions, RemoteModel
from app.settings import Settings
from tests.fakes.engine import FakeEngine, pretend_vllm
from workers.serving.engines.base import Address, EngineOptions, EngineSpec
from workers.serving.engines.llama_cpp import LlamaCppEngine
from workers.serving.engines.registry import REGISTRY, choose_engine, load_engine
from workers.serving.engines.transformers import TransformersEngine
from workers.serving.engines.vllm import VllmEngine
from workers.serving.planning import require_options

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


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder that says nothing of quantization."""
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("device", Device)
# An adapter is served on its base, which is of another format.
@pytest.mark.parametrize("format_", sorted(set(ArtifactFormat) - {ArtifactFormat.ADAPTER}))
def test_every_format_has_an_engine_that_loads_it(
    format_: ArtifactFormat, device: Device, settings: Settings, plain: Path
) -> None:
    engine = choose_engine(format_, None, device, settings, folder=plain, wanted=None)
    assert engine.spec.loads(format_, None, device)


def test_every_method_can_be_served_on_a_cpu(settings: Settings, plain: Path) -> None:
    for name, spec in CATALOG.items():
        engine = choose_engine(spec.output, name, Device.CPU, settings, folder=plain, wanted=None)
        assert engine.spec.name == ("llama_cpp" if spec.output is ArtifactFormat.GGUF else "transformers")


@pytest.mark.parametrize("name", REGISTRY)
def test_an_engine_is_named_as_its_key(name: str, settings: Settings) -> None:
    assert load_engine(name, settings).spec.name == name


@pytest.mark.parametrize("name", ["llama_cpp", "transformers", "remote"])
def test_the_engines_of_this_environment_can_run_here(name: str, settings: Settings) -> None:
    load_engine(name, settings).check_environment()


def test_vllm_is_first_on_a_gpu_once_it_is_installed(settings: Settings, plain: Path) -> None:
    wanted = (ArtifactFormat.SAFETENSORS, "awq", Device.GPU, settings)
    assert choose_engine(*wanted, folder=plain, wanted=None).spec.name == "transformers"
    pretend_vllm(settings, Device.GPU)
    assert choose_engine(*wanted, folder=plain, wanted=None).spec.name == "vllm"
    assert choose_engine(*wanted, folder=plain, wanted=None, adapters=1).spec.name == "vllm"
    assert choose_engine(*wanted, folder=plain, wanted=None, adapters=2).spec.name == "transformers"


GPTQ = {"quant_method": "gptq", "bits": 4, "sym": True}


@pytest.mark.parametrize(
    ("quantization", "on"),
    [
        (GPTQ, ["cpu", "gpu"]),
        (GPTQ | {"bits": 8}, ["gpu"]),
        (GPTQ | {"dynamic": {"+:mlp": {"bits": 8}, "-:head": {}}}, ["gpu"]),
        (GPTQ | {"bits": 3}, []),
        (GPTQ | {"sym": False}, []),
        ({"quant_method": "awq", "bits": 4}, ["cpu", "gpu"]),
        (None, ["cpu", "gpu"]),
    ],
)
@pytest.mark.parametrize("device", Device)
def test_vllm_takes_gptq_with_the_bits_that_it_has_kernels_for(
    quantization: dict[str, Any] | None, on: list[str], device: Device, settings: Settings, plain: Path
) -> None:
    (plain / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    pretend_vllm(settings, device)
    asked = (ArtifactFormat.SAFETENSORS, "gptq", device, settings)
    if device in on:
        assert choose_engine(*asked, folder=plain, wanted="vllm").spec.name == "vllm"
        return
    with pytest.raises(InvalidParameter, match=r"this model has .* leave `engine` out"):
        choose_engine(*asked, folder=plain, wanted="vllm")
    assert choose_engine(*asked, folder=plain, wanted=None).spec.name == "transformers"


@pytest.mark.parametrize("training", Adapter)
def test_vllm_serves_whole_models_of_every_training(training: Adapter, settings: Settings, plain: Path) -> None:
    pretend_vllm(settings, Device.GPU)
    chosen = choose_engine(ArtifactFormat.SAFETENSORS, training.value, Device.GPU, settings, folder=plain, wanted=None)
    assert chosen.spec.name == "vllm"


def evaluated(engine: str, rate: float, device: str = "cpu") -> dict[str, Any]:
    speed = [{"requests": requests, "decode_tokens_per_second": rate * requests / 8} for requests in (1, 8)]
    return {"serving": {"engine": engine, "device": device, "speed": speed}}


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], "transformers"),
        ([evaluated("vllm", 900)], "transformers"),  # nothing to compare it with
        ([evaluated("vllm", 900), evaluated("transformers", 300)], "vllm"),
        ([evaluated("vllm", 200), evaluated("transformers", 300), evaluated("vllm", 900)], "transformers"),
        ([evaluated("vllm", 900, "gpu"), evaluated("transformers", 300)], "transformers"),
        ([{"quality": {}}, {"serving": None}], "transformers"),
    ],
)
def test_measurements_come_before_the_table(
    results: list[dict[str, Any]], expected: str, settings: Settings, plain: Path
) -> None:
    pretend_vllm(settings, Device.CPU)
    measured = measured_speeds(results, Device.CPU)
    chosen = choose_engine(
        ArtifactFormat.SAFETENSORS, None, Device.CPU, settings, folder=plain, wanted=None, measured=measured
    )
    assert chosen.spec.name == expected


@pytest.mark.parametrize(
    ("format_", "method", "wanted", "reason"),
    [
        (ArtifactFormat.GGUF, None, "transformers", "'transformers' does not load gguf models on a cpu"),
        (ArtifactFormat.SAFETENSORS, "bitsandbytes", "vllm", "made by 'bitsandbytes' on a cpu"),
        (ArtifactFormat.SAFETENSORS, "fp8", "vllm", "made by 'fp8' on a cpu"),
        (ArtifactFormat.SAFETENSORS, None, "tgi", "'tgi' is unknown .* llama_cpp, transformers, vllm"),
        (ArtifactFormat.SAFETENSORS, None, "remote", "'remote' is unknown for stored models"),
    ],
)
def test_an_engine_that_cannot_is_refused(
    format_: ArtifactFormat, method: str | None, wanted: str, reason: str, settings: Settings, plain: Path
) -> None:
    with pytest.raises(InvalidParameter, match=reason) as refused:
        choose_engine(format_, method, Device.CPU, settings, folder=plain, wanted=wanted)
    assert refused.value.param == "engine"


def test_vllm_says_how_it_is_installed(settings: Settings) -> None:
    with pytest.raises(EngineFailed, match="bitmill engines install vllm"):
        VllmEngine(settings).check_environment()


@pytest.mark.parametrize(("name", "option"), [("vllm", "threads"), ("remote", "threads"), ("remote", "context_length")])
def test_an_option_without_effect_is_refused(name: str, option: str, settings: Settings) -> None:
    remote = RemoteModel(server="s", model="m") if name == "remote" else None
    asked = DeploymentOptions(slots=2, keep_alive=60, pinned=True, remote=remote)
    require_options(asked, load_engine(name, settings))
    with pytest.raises(InvalidParameter) as refused:
        require_options(asked.model_copy(update={option: 128}), load_engine(name, settings))
    assert refused.value.param == option


@pytest.mark.parametrize(
    ("engine", "answer", "share"),
    [
        ("llama_cpp", SLOTS, 0.01),
        ("transformers", "0.25", 0.25),
        ("vllm", 'x 1\nvllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5\n', 0.5),
    ],
)
def test_engines_tell_how_full_their_cache_is(engine: str, answer: str, share: float, settings: Settings) -> None:
    assert load_engine(engine, settings).cache_usage(answer, options()) == share


def test_a_missing_library_is_named_with_what_installs_it(tmp_path: Path) -> None:
    class Incomplete(FakeEngine):
        spec = EngineSpec(
            name="incomplete", formats=frozenset(), devices=frozenset(), requires={"no_such_module": "pip install it"}
        )

    with pytest.raises(EngineFailed, match=r"no_such_module.*pip install it"):
        Incomplete(tmp_path).check_environment()


@pytest.mark.parametrize("engine_class", [LlamaCppEngine, TransformersEngine])
def test_the_key_is_no_argument(
    engine_class: type[LlamaCppEngine | TransformersEngine], settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").touch()
    process = engine_class(settings).command(tmp_path, options(), ADDRESS)
    assert "the-key" not in " ".join(process.argv)
    assert "the-key" in process.environment.values()
    assert "the-key" not in repr(process)
    assert process.environment["OMP_WAIT_POLICY"] == "passive"
    assert flags(process.argv)["--cache-tokens"] == "4000"


@pytest.mark.parametrize(("engine_class", "kept"), [(LlamaCppEngine, False), (TransformersEngine, True)])
def test_idle_connections_hold_no_thread_of_llama_cpp(
    engine_class: type[LlamaCppEngine | TransformersEngine], kept: bool, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").touch()
    assert engine_class(settings).command(tmp_path, options(), ADDRESS).keeps_connections is kept


def test_a_split_model_is_loaded_by_its_first_part(settings: Settings, tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"model-0000{part}-of-00002.gguf").touch()
    argv = LlamaCppEngine(settings).command(tmp_path, options(), ADDRESS).argv
    assert flags(argv)["--model"] == str(tmp_path / "model-00001-of-00002.gguf")


def test_a_folder_without_a_model_is_an_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=r"no model\.gguf"):
        LlamaCppEngine(settings).command(tmp_path, options(), ADDRESS)
