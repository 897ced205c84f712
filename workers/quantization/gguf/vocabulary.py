"""A checkpoint's tokenizer in GGUF's terms: tokens, their types, merges or scores, special ids, template.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, section "Tokenizer".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from app.domain.errors import SourceNotFound, UnsupportedArchitecture
from workers.quantization.gguf.pretokenizer import llama_cpp_name

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """`model` is llama.cpp's family: gpt2 (byte-level BPE, merges) or llama (SentencePiece, scores)."""

    model: str
    tokens: list[str]
    types: list[TokenType]
    pre: str | None = None
    scores: list[float] | None = None
    add_space_prefix: bool | None = None


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Reads tokenizer.json; ids up to `size` that it leaves free become unused tokens."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise SourceNotFound(
            f"{folder.name} has no tokenizer.json, which GGUF needs; save the tokenizer with transformers "
            f"(AutoTokenizer.from_pretrained(…).save_pretrained(…)) beside the weights",
            param="model",
        )
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise UnsupportedArchitecture(f"a {model.get('type')} tokenizer has no converter to GGUF", param="model")
    tokens, types = _tokens(tokenizer, size)
    if model.get("byte_fallback"):
        prefix = _adds_space(tokenizer)
        scores = _scores(tokens, model["merges"])
        return Vocabulary("llama", tokens, types, scores=scores, add_space_prefix=prefix)
    return Vocabulary("gpt2", tokens, types, pre=llama_cpp_name(tokenizer))


def write_vocabulary(writer: GGUFWriter, folder: Path, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre is not None:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    special = SpecialVocab(folder, load_merges=vocabulary.model == "gpt2", n_vocab=len(vocabulary.tokens))
    special.add_to_gguf(writer, quiet=True)


def _tokens(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[TokenType]]:
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    for text, number in tokenizer["model"]["vocab"].items():
        tokens[number] = text
        types[number] = TokenType.BYTE if BYTE_TOKEN.fullmatch(text) else TokenType.NORMAL
    for added in tokenizer.get("added_tokens", []):
        number = added["id"]
        if number < size:
            tokens[number] = added["content"]
            types[number] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if tokenizer["model"].get("unk_token") in tokens:
        types[tokens.index(tokenizer["model"]["unk_token"])] = TokenType.UNKNOWN
    return tokens, types


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """Scores with which SentencePiece's greedy merging takes the merges in their order.

    The file keeps the order only. llama.cpp merges the pair whose result has the highest score, so minus the
    rank of the first merge that makes a token is a score that leads to the same tokens.
    """
    ranks: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, -float(rank))
    return [ranks.get(token, -1e9) for token in tokens]


def _adds_space(tokenizer: dict[str, Any]) -> bool:
    text = json.dumps([tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")])
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text
