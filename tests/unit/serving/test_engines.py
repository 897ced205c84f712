"""What engines are started with, and which one serves what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.domain.artifacts import ArtifactFormat
from app.domain.errors import EngineFailed
from tests.fakes.engine import FakeEngine
from workers.serving.engines.base import Address, EngineOptions, EngineSpec
from workers.serving.engines.llama_cpp import SINGLE_THREAD_BYTES, LlamaCppEngine
from workers.serving.engines.registry import REGISTRY, engine_for, load_engine
from workers.serving.engines.transformers import TransformersEngine

ADDRESS = Address("127.0.0.1", 4242, "the-key")


def options(threads: int = 0) -> EngineOptions:
    return EngineOptions(public_name="org/m", context_length=1000, slots=8, threads=threads)


def flags(argv: list[str]) -> dict[str, str]:
    return dict(zip(argv[3::2], argv[4::2], strict=True))


def test_every_format_has_an_engine_that_loads_it() -> None:
    for format_ in ArtifactFormat:
        assert format_ in engine_for(format_).spec.formats


@pytest.mark.parametrize("name", REGISTRY)
def test_an_engine_is_named_as_its_key_and_can_run_here(name: str) -> None:
    engine = load_engine(name)
    assert engine.spec.name == name
    engine.check_environment()


def test_a_missing_library_is_named_with_what_installs_it(tmp_path: Path) -> None:
    class Incomplete(FakeEngine):
        spec = EngineSpec(
            name="incomplete", formats=frozenset(), devices=frozenset(), requires={"no_such_module": "pip install it"}
        )

    with pytest.raises(EngineFailed, match=r"no_such_module.*pip install it"):
        Incomplete(tmp_path).check_environment()


@pytest.mark.parametrize("engine", [LlamaCppEngine(), TransformersEngine()])
def test_the_key_is_no_argument(engine: LlamaCppEngine | TransformersEngine, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    process = engine.command(tmp_path, options(), ADDRESS)
    assert "the-key" not in " ".join(process.argv)
    assert "the-key" in process.environment.values()
    assert "the-key" not in repr(process)
    assert process.environment["OMP_WAIT_POLICY"] == "passive"
    assert flags(process.argv)["--cache-tokens"] == "4000"


def test_a_split_model_is_loaded_by_its_first_part(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"model-0000{part}-of-00002.gguf").touch()
    argv = LlamaCppEngine().command(tmp_path, options(), ADDRESS).argv
    assert flags(argv)["--model"] == str(tmp_path / "model-00001-of-00002.gguf")


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=r"no model\.gguf"):
        LlamaCppEngine().command(tmp_path, options(), ADDRESS)


@pytest.mark.parametrize(("size", "threads", "expected"), [(10, 0, 1), (SINGLE_THREAD_BYTES, 0, None), (10, 3, 3)])
def test_small_models_decode_on_one_thread(size: int, threads: int, expected: int | None, tmp_path: Path) -> None:
    with (tmp_path / "model.gguf").open("wb") as file:
        file.truncate(size)
    argv = LlamaCppEngine().command(tmp_path, options(threads), ADDRESS).argv
    assert flags(argv)["--threads"] == str(expected or os.cpu_count())
