"""What the tests of faults share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.checkpoints import tiny_llama


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    # Large enough that a job lasts for seconds and can be met at work.
    tiny_llama(root / "small", hidden_size=512, intermediate_size=2048, layers=8, vocab_size=4096)
    return root
