"""How many threads llama.cpp gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.serving.engines.base import Address
from workers.serving.engines.llama_cpp_threads import MEASURED_BYTES, candidates, decode_threads, usable_cores

# 40 tokens of a request in one slot of llama.cpp's server, and another slot at rest.
SLOTS = (
    '[{"is_processing": true, "n_prompt_tokens_cache": 10, "n_prompt_tokens_processed": 25,'
    ' "next_token": [{"n_decoded": 5}]}, {"is_processing": false}]'
)
ADDRESS = Address("127.0.0.1", 4242, "the-key")


def test_the_best_number_of_threads_is_measured_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def seconds_with(threads: int) -> float:
        asked.append(threads)
        return 1.0 if threads == 2 else 2.0

    (tmp_path / "model.gguf").write_bytes(b"x")
    numbers = candidates(usable_cores())
    expected = 2 if 2 in numbers else numbers[0]
    assert decode_threads(tmp_path / "model.gguf", tmp_path / "kept", seconds_with) == expected
    assert decode_threads(tmp_path / "model.gguf", tmp_path / "kept", seconds_with) == expected
    assert asked == (numbers if len(numbers) > 1 else [])


def test_large_models_use_every_core_unmeasured(tmp_path: Path) -> None:
    with (tmp_path / "model.gguf").open("wb") as file:
        file.truncate(MEASURED_BYTES + 1)

    def never(threads: int) -> float:
        raise AssertionError(threads)

    assert decode_threads(tmp_path / "model.gguf", tmp_path, never) == usable_cores()


@pytest.mark.parametrize(("cores", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_powers_of_two_and_all_cores_are_tried(cores: int, expected: list[int]) -> None:
    assert candidates(cores) == expected
