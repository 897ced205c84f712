"""A checkpoint's tokenizer in GGUF's terms: tokens, their types, merges or scores, special ids, template.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, section "Tokenizer".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf import GGUFWriter, SpecialVocab, TokenType
from transformers import AutoTokenizer

from app.domain.errors import SourceNotFound, UnsupportedArchitecture
from app.storage.checkpoints import Checkpoint, stop_token_ids
from workers.quantization.gguf.pretokenizer import llama_cpp_name

BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# What ends a turn in the families' chat formats.
TURN_ENDS: Final = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>")


@dataclass(frozen=True)
class Vocabulary:
    """`model` is llama.cpp's family: gpt2 (byte-level BPE, merges) or llama (SentencePiece, scores)."""

    model: str
    tokens: list[str]
    types: list[TokenType]
    pre: str
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
        return Vocabulary("llama", tokens, types, "default", scores=scores, add_space_prefix=prefix)
    return Vocabulary("gpt2", tokens, types, llama_cpp_name(tokenizer))


def write_vocabulary(writer: GGUFWriter, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    _write_special_tokens(writer, checkpoint, vocabulary)


def _write_special_tokens(writer: GGUFWriter, checkpoint: Checkpoint, vocabulary: Vocabulary) -> None:
    size = len(vocabulary.tokens)
    special = SpecialVocab(checkpoint.path, load_merges=vocabulary.model == "gpt2", n_vocab=size)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    # What the tokenizer does, not what its files say of it, and always written: llama.cpp's defaults vary by model.
    ids = tokenizer.encode("text")
    special.add_special_token = {
        "bos": tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id,
    }
    special.special_token_ids |= end_tokens(vocabulary.tokens, tokenizer.eos_token_id, stop_token_ids(checkpoint))
    if isinstance(tokenizer.chat_template, str):
        special.chat_template = tokenizer.chat_template
    special.add_to_gguf(writer, quiet=True)


def end_tokens(tokens: list[str], eos: int | None, stop: list[int]) -> dict[str, int]:
    """GGUF's three places for tokens that end a generation: `eos`, `eot` (end of turn), `eom` (of message).

    llama.cpp stops at each of them. Of more than three it knows some by their text; what it does not know, the proof
    finds. `tokens` are the texts, `eos` the tokenizer's own, `stop` the configuration's.
    """
    ids = [number for number in dict.fromkeys([eos, *stop]) if number is not None and number < len(tokens)]
    # Texts that llama.cpp knows need a place least, but the first one there is the end of the turn by its name.
    others = sorted(ids[1:], key=lambda number: tokens[number] not in TURN_ENDS)
    return dict(zip(("eos", "eot", "eom"), [*ids[:1], *others], strict=False))


def _tokens(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[TokenType]]:
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    for text, number in tokenizer["model"]["vocab"].items():
        tokens[number] = text
        types[number] = TokenType.BYTE if BYTE_TOKEN.fullmatch(text) else TokenType.NORMAL
    for added in tokenizer.get("added_tokens", []):
        number = added["id"]
        if number < size:
            # llama.cpp looks for these in the text as it is given, before spaces are replaced.
            tokens[number] = added["content"] if added["special"] else added["content"].replace("▁", " ")
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
