"""llama.cpp's quantizer, called in this process through llama-cpp-python."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any, Final

from llama_cpp import llama_cpp

from app.domain.errors import DiskFull, QuantizationFailed
from workers.quantization.base import JobRun
from workers.quantization.gguf.importance import Importance

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
        elif text.strip():
            self.lines = [*self.lines, text.strip()][-KEPT_LINES:]

    @property
    def reason(self) -> str:
        failures = [line for line in self.lines if "fail" in line.lower() or "error" in line.lower()]
        return "; ".join(failures or self.lines[-2:])


def quantize_file(source: Path, target: Path, type_name: str, importance: Importance | None, run: JobRun) -> None:
    """Quantizes a GGUF file to the mix that llama.cpp calls `type_name`. Raises QuantizationFailed."""
    reader = LogReader(run, f"quantizing to {type_name}")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type_name}")
    params.nthread = os.cpu_count() or 1
    matrix = _as_array(importance or {})
    if importance:
        params.imatrix = ctypes.cast(matrix, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))

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
        raise _failure(type_name, reader.reason)


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
