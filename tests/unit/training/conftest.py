"""One tiny model for all trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.training import FakeBase, write_facts


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> FakeBase:
    folder = tiny_llama(tmp_path_factory.mktemp("base") / "tiny", initializer_range=0.05, fitted=False)
    return FakeBase("local/tiny", inspect_checkpoint(folder))


@pytest.fixture(scope="package")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_facts(tmp_path_factory.mktemp("facts") / "facts.jsonl")


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """More threads only wait for each other on models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
