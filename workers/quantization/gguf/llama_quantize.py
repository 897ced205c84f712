"""llama.cpp's quantizer, called in this process through llama-cpp-python."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gguf import GGMLQuantizationType
from llama_cpp import llama_cpp

from app.domain.errors import DiskFull, QuantizationFailed
from workers.quantization.base import JobRun
from workers.quantization.gguf.importance_files import Importance

# "[  12/ 272]  blk.1.attn_k.weight …": one line per tensor.
PROGRESS_LINE: Final = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
KEPT_LINES: Final = 20


@llama_cpp.llama_log_callback
def SILENT(level: int, text: bytes, user_data: Any) -> None:  # noqa: N802 -- a constant that is a callback
    """Takes the log's place afterwards: llama.cpp would go on calling a collected function and crash."""


class LogReader:
    """llama.cpp tells its progress and the reasons of its failures in its log only."""

    def __init__(self, run: JobRun, stage: str) -> None:
        self.run = run
        self.stage = stage
        self.lines: list[str] = []

    def read(self, text: str) -> None:
        found = PROGRESS_LINE.search(text)
        if found:
            number, count = int(found[1]), int(found[2])
            self.run.report((number - 1) / count, self.stage)
        elif text.strip(" \n="):  # a reason may stand between rules of equals signs
            self.lines = [*self.lines, text.strip()][-KEPT_LINES:]

    @property
    def reason(self) -> str:
        failures = [line for line in self.lines if "fail" in line.lower() or "error" in line.lower()]
        return "; ".join(failures or self.lines[-2:])


@dataclass(frozen=True)
class Recipe:
    """Which type each tensor gets: llama.cpp's mix, and what differs from it. All names are upper-case.

    `tensor_types` maps whole GGUF tensor names.
    """

    mix: str
    output_type: str | None = None
    embedding_type: str | None = None
    tensor_types: dict[str, str] = field(default_factory=dict)


def quantize_file(source: Path, target: Path, recipe: Recipe, importance: Importance | None, run: JobRun) -> None:
    """Quantizes a GGUF file. Raises QuantizationFailed or DiskFull, with llama.cpp's reason."""
    reader = LogReader(run, f"quantizing to {recipe.mix}")
    params = _params(recipe)
    matrix, overrides = _as_array(importance or {}), _overrides(recipe.tensor_types)
    if importance:
        params.imatrix = ctypes.cast(matrix, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    if recipe.tensor_types:
        params.tt_overrides = ctypes.cast(overrides, ctypes.POINTER(llama_cpp.llama_model_tensor_override))

    @llama_cpp.llama_log_callback
    def read_log(level: int, text: bytes, user_data: Any) -> None:
        reader.read(text.decode(errors="replace"))

    llama_cpp.llama_log_set(read_log, ctypes.c_void_p(0))
    try:
        code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    finally:
        llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
    if code != 0:
        target.unlink(missing_ok=True)
        raise _failure(recipe.mix, reader.reason)


def _params(recipe: Recipe) -> Any:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = os.cpu_count() or 1
    params.ftype = file_type(recipe.mix)
    if recipe.output_type:
        params.output_tensor_type = _ggml_type(recipe.output_type)
    if recipe.embedding_type:
        params.token_embedding_type = _ggml_type(recipe.embedding_type)
    return params


def file_type(mix: str) -> int:
    """llama.cpp's number of a mix."""
    name = "LLAMA_FTYPE_ALL_F32" if mix == "F32" else f"LLAMA_FTYPE_MOSTLY_{mix}"
    return int(getattr(llama_cpp, name))


def _ggml_type(name: str) -> int:
    # Not from llama_cpp, whose own list misses BF16 and the ternary types.
    return int(GGMLQuantizationType[name])


def _overrides(tensor_types: dict[str, str]) -> Any:
    """A C array that ends with an entry without a pattern. llama.cpp searches names for regular expressions."""
    array = (llama_cpp.llama_model_tensor_override * (len(tensor_types) + 1))()
    for entry, (name, type_name) in zip(array, tensor_types.items(), strict=False):
        entry.pattern = f"^{re.escape(name)}$".encode()
        entry.type = _ggml_type(type_name)
    return array


def _as_array(importance: Importance) -> Any:
    """A C array that ends with an entry without a name. It keeps the names and data that it points to alive."""
    array = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(array, importance.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return array


def _failure(type_name: str, reason: str) -> Exception:
    if "no space" in reason.lower():
        return DiskFull(f"llama.cpp found no room for {type_name}: {reason}; free disk space and submit again")
    return QuantizationFailed(f"llama.cpp could not quantize to {type_name}: {reason}")
