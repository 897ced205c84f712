"""The built-in sample and how a checkpoint's tokenizer cuts it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from transformers import AutoTokenizer

from app.domain.errors import InvalidParameter
from app.settings import Settings
from app.storage.checkpoints import Checkpoint, stop_token_ids
from workers.calibration.texts import Document
from workers.evaluation.windows import Tokens, cut

NAME: Final = "builtin"
TEXT: Final = Path(__file__).parent / "data" / "sample.txt"
GENERATED_TOKENS: Final = 24
# More than texts have on average, in any language: enough text for the windows that are asked for.
CHARACTERS_PER_TOKEN: Final = 12
QUESTION: Final = "What is the capital of France?"


@dataclass(frozen=True)
class Sample:
    """Token ids of one text for one tokenizer, and a prompt to be continued."""

    name: str
    text: str
    sha256: str
    tokens: Tokens
    windows: list[Tokens]
    prompt: Tokens
    stop: frozenset[int]
    tokenizer: Any

    @property
    def context_length(self) -> int:
        return len(self.windows[0])


def load_sample(checkpoint: Checkpoint, settings: Settings) -> Sample:
    """The built-in text. Raises InvalidParameter when the windows asked for are longer than it."""
    text = TEXT.read_text(encoding="utf-8")
    return cut_sample(
        checkpoint, NAME, [text], length=settings.evaluation_context_length, limit=settings.evaluation_windows
    )


def cut_sample(checkpoint: Checkpoint, name: str, documents: list[Document], *, length: int, limit: int) -> Sample:
    """Up to `limit` windows of `length` tokens, or as many as the model takes, of these documents in a row.

    Raises InvalidParameter where they do not fill one window, or are conversations for a model without a template.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    length = min(length, checkpoint.config.get("max_position_embeddings") or length)
    text = _join(tokenizer, documents, limit * length * CHARACTERS_PER_TOKEN)
    tokens = np.array(tokenizer.encode(text, add_special_tokens=False, verbose=False), dtype=np.int64)
    return Sample(
        name=name,
        text=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        tokens=tokens,
        windows=cut(tokens, length=length, limit=limit, bos=_bos(tokenizer)),
        prompt=_prompt(tokenizer)[-length // 2 :],
        stop=_stop(checkpoint, tokenizer),
        tokenizer=tokenizer,
    )


def _join(tokenizer: Any, documents: list[Document], characters: int) -> str:
    """One text, no longer than its windows can need: what is left out of it is not tokenized either."""
    parts: list[str] = []
    for document in documents:
        parts.append(document if isinstance(document, str) else _conversation(tokenizer, document))
        characters -= len(parts[-1])
        if characters < 0:
            parts[-1] = parts[-1][:characters]
            break
    return "\n\n".join(part for part in parts if part.strip())


def _conversation(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    if not tokenizer.chat_template:
        raise InvalidParameter(
            "the data set holds conversations and the model has no chat template; give plain text", param="dataset"
        )
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def _bos(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before text, if it does."""
    first = tokenizer.encode("text")[:1]
    return first[0] if first and first[0] == tokenizer.bos_token_id else None


def _prompt(tokenizer: Any) -> Tokens:
    if not tokenizer.chat_template:
        return np.array(tokenizer.encode(QUESTION), dtype=np.int64)
    messages = [{"role": "user", "content": QUESTION}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)


def _stop(checkpoint: Checkpoint, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a turn, by the tokenizer, config.json and generation_config.json."""
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return frozenset([*own, *stop_token_ids(checkpoint)])
