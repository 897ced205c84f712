"""Tiny GGUF files for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFWriter

from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.run import RecordingRun
from workers.quantization.gguf.converter import convert


def convert_tiny(
    checkpoint: Path, target: Path, monkeypatch: pytest.MonkeyPatch, *, pre: str | None = None, type_: str = "BF16"
) -> Path:
    """The GGUF file of a checkpoint. `pre` is the pre-tokenizer's name that it gets instead of the right one."""
    with monkeypatch.context() as patched:
        if pre is not None:
            patched.setattr("workers.quantization.gguf.vocabulary.llama_cpp_name", lambda tokenizer: pre)
        source = inspect_checkpoint(checkpoint)
        convert(source, target, type_, RecordingRun(source, target.parent / "stages"))
    return target


def write_metadata(target: Path, fill: Callable[[GGUFWriter], None], *, architecture: str = "llama") -> Path:
    """A GGUF file without tensors, whose other keys `fill` adds."""
    writer = GGUFWriter(target, arch=architecture)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return target
