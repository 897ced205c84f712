"""What processes must not import, seen in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys

import pytest

ML_LIBRARIES = {
    "accelerate", "bitsandbytes", "datasets", "gguf", "llama_cpp", "numpy", "peft", "safetensors", "tokenizers",
    "torch", "transformers", "xllamacpp",
}  # fmt: skip


@pytest.mark.parametrize("module", ["app.main", "app.cli.main", "workers.supervisor", "workers.serving.host"])
def test_light_processes_import_no_ml_library(module: str, tmp_path: object) -> None:
    code = f"import {module}, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ML_LIBRARIES & set(done.stdout.split()) == set()


def test_the_app_can_be_created_without_any_ml_library(tmp_path: object) -> None:
    code = f"""
import sys
for name in {sorted(ML_LIBRARIES)}:
    sys.modules[name] = None  # makes its import fail
from app.main import create_app
from app.settings import Settings
app = create_app(Settings(data_dir={str(tmp_path)!r}))
assert app.openapi()["paths"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
