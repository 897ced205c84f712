"""The tokenizer of a GGUF file as a tokenizer.json, by transformers' own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from app.domain.errors import UnsupportedArchitecture
from app.storage.checkpoints import read_json_object
from workers.quantization.gguf.pretokenizer import canonical_name, pre_tokenizer_of, takes_whole_first
from workers.sources.gguf_metadata import GgufMetadata

# llama.cpp's families: byte-level BPE, whose pre-tokenizer has a name of its own, and SentencePiece.
BYTE_LEVEL: Final = "gpt2"
FAMILIES: Final = (BYTE_LEVEL, "llama")
# Under these names llama.cpp begins each text with the BOS token, unless the file says otherwise.
BEGINNING: Final = ("llama-bpe", "tekken")


def save_tokenizer(gguf: Path, metadata: GgufMetadata, folder: Path) -> None:
    """Writes the tokenizer's files into `folder`. Raises UnsupportedArchitecture, with the name, for another kind."""
    from transformers import AutoTokenizer

    family = metadata.value("tokenizer.ggml.model")
    if family not in FAMILIES:
        raise UnsupportedArchitecture(
            f"the GGUF file's tokenizer is of kind {family!r}; only {' and '.join(map(repr, FAMILIES))} can be "
            "unpacked. Give the original checkpoint",
            param="model",
        )
    name = canonical_name(metadata.value("tokenizer.ggml.pre") or "default") if family == BYTE_LEVEL else ""
    begins = {"add_bos_token": metadata.value("tokenizer.ggml.add_bos_token") is not False} if name in BEGINNING else {}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, **begins)
    tokenizer.model_max_length = metadata.value(f"{metadata.architecture}.context_length")
    tokenizer.save_pretrained(folder)
    if name:
        _set_rules(folder / "tokenizer.json", name)


def _set_rules(path: Path, name: str) -> None:
    """transformers falls back to GPT-2's rule for a name that it does not know, such as smollm."""
    content: dict[str, Any] = read_json_object(path)
    content["pre_tokenizer"] = pre_tokenizer_of(name)
    content["model"]["ignore_merges"] = takes_whole_first(name)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
