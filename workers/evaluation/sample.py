"""The built-in sample and how a checkpoint's tokenizer cuts it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from transformers import AutoTokenizer

from app.settings import Settings
from app.storage.checkpoints import Checkpoint, stop_token_ids
from workers.evaluation.windows import Tokens, cut

NAME: Final = "builtin"
TEXT: Final = Path(__file__).parent / "data" / "sample.txt"
GENERATED_TOKENS: Final = 24
QUESTION: Final = "What is the capital of France?"


@dataclass(frozen=True)
class Sample:
    """Token ids of one text for one tokenizer, and a prompt to be continued."""

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
    """Raises InvalidParameter when the windows asked for are longer than the text."""
    text = TEXT.read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    tokens = np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
    length = min(settings.evaluation_context_length, checkpoint.config["max_position_embeddings"])
    return Sample(
        text=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        tokens=tokens,
        windows=cut(tokens, length=length, limit=settings.evaluation_windows, bos=_bos(tokenizer)),
        prompt=_prompt(tokenizer)[-length // 2 :],
        stop=_stop(checkpoint, tokenizer),
        tokenizer=tokenizer,
    )


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
