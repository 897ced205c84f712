"""From the lines of a training file to token ids, and which of them carry loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from app.domain.errors import InvalidParameter
from app.domain.training_data import Completion, Conversation, Record, read_records
from app.storage.checkpoints import Checkpoint, stop_token_ids
from workers.training.rendering import render


@dataclass(frozen=True)
class Example:
    """`input_ids` (n,) and `carries_loss` (n,) of the example in line `line` of its file."""

    input_ids: npt.NDArray[np.int32]
    carries_loss: npt.NDArray[np.bool_]
    line: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def prompt(self) -> list[int]:
        """The tokens before the last answer that is learned."""
        return [int(token) for token in self.input_ids[: self._last_answer[0]]]

    @property
    def answer(self) -> list[int]:
        """The tokens of that answer."""
        start, end = self._last_answer
        return [int(token) for token in self.input_ids[start:end]]

    @property
    def _last_answer(self) -> tuple[int, int]:
        learned = np.flatnonzero(self.carries_loss)
        gaps = np.flatnonzero(np.diff(learned) > 1)
        return int(learned[gaps[-1] + 1] if len(gaps) else learned[0]), int(learned[-1]) + 1


@dataclass(frozen=True)
class Examples:
    """`truncated` counts those that were longer than the sequence length."""

    items: list[Example]
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)

    @property
    def tokens(self) -> int:
        return sum(len(example) for example in self.items)

    @property
    def loss_tokens(self) -> int:
        """Tokens that are predicted: the first of a sequence has nothing before it to be predicted from."""
        return sum(int(example.carries_loss[1:].sum()) for example in self.items)

    def first(self, tokens: int) -> Examples:
        """Those at the start with that many tokens together, one at least."""
        ends = np.cumsum([len(example) for example in self.items])
        return Examples(self.items[: max(int(np.searchsorted(ends, tokens, side="right")), 1)])


def load_tokenizer(source: Checkpoint) -> Any:
    return AutoTokenizer.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)


class Encoder:
    """Encodes the examples of one file for one model, cut to `length` tokens or what the model takes.

    Errors name `param`.
    """

    def __init__(self, source: Checkpoint, length: int, param: str = "training_file") -> None:
        self.tokenizer = load_tokenizer(source)
        own = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        self.stops = frozenset([*own, *stop_token_ids(source)])
        self.length = min(length, source.config.get("max_position_embeddings") or length)
        self.vocabulary = source.config.get("vocab_size")
        self.param = param

    def encode_file(self, path: Path) -> Examples:
        """Raises InvalidParameter for a line that cannot be read, rendered or learned from."""
        items, truncated = [], 0
        for whole, example in self._examples(path):
            truncated += whole > self.length
            items.append(example)
        return Examples(items, truncated)

    def encode_first(self, path: Path, tokens: int) -> Examples:
        """The first of what `encode_file` would give, without reading on."""
        items, seen = [], 0
        for _, example in self._examples(path):
            items.append(example)
            seen += len(example)
            if seen >= tokens:
                break
        return Examples(items).first(tokens)

    def _examples(self, path: Path) -> Iterator[tuple[int, Example]]:
        """Each example, cut, with the length that it had."""
        for number, record in read_records(path, param=self.param):
            example = self.encode(record, number)
            yield len(example), self._cut(example)

    def encode(self, record: Record, line: int) -> Example:
        """The whole example, of any length. Raises InvalidParameter."""
        if isinstance(record, Completion):
            return self._completion(record, line)
        return self._conversation(record, line)

    def _completion(self, record: Completion, line: int) -> Example:
        """Begun as the tokenizer begins text, and ended with its end token, which is learned."""
        if self.tokenizer.eos_token_id is None:
            self._refuse(line, "the model's tokenizer has no end-of-sequence token", "train a model that has one")
        prompt = self.tokenizer.encode(record.prompt)
        # What some tokenizers put after text would stand between prompt and completion.
        if prompt and prompt[-1] == self.tokenizer.eos_token_id and prompt[-1] != self.tokenizer.bos_token_id:
            prompt.pop()
        learned = [*self.tokenizer.encode(record.completion, add_special_tokens=False), self.tokenizer.eos_token_id]
        if not prompt:
            # Nothing stands before the first token, so that it cannot be learned.
            prompt, learned = learned[:1], learned[1:]
        return _example(prompt + learned, [False] * len(prompt) + [True] * len(learned), line)

    def _conversation(self, record: Conversation, line: int) -> Example:
        if not self.tokenizer.chat_template:
            self._refuse(
                line,
                "it is a conversation, and the model has no chat template",
                'write {"prompt": "…", "completion": "…"}, or train a model that was made for chat',
            )
        try:
            ids, learned = render(self.tokenizer, record, self.stops)
        except (TemplateError, TypeError, ValueError, NotImplementedError) as error:
            # Templates are programs: they raise on purpose, or stumble over what they do not expect. The last is of
            # tokenizers that cannot tell where in a text their tokens are.
            self._refuse(line, f"the model's chat template refuses it: {error}", "change its messages")
        return _example(ids, learned, line)

    def _cut(self, example: Example) -> Example:
        if not example.carries_loss[1 : self.length].any():
            self._refuse(
                example.line,
                f"of its {len(example)} tokens the first {self.length} hold nothing that is learned",
                "raise bitmill.sequence_length, or shorten the example",
            )
        cut = Example(example.input_ids[: self.length], example.carries_loss[: self.length], example.line)
        if self.vocabulary is not None and cut.input_ids.max() >= self.vocabulary:
            self._refuse(
                example.line,
                f"it holds the token {cut.input_ids.max()}, and the model has embeddings of {self.vocabulary}",
                "take the tokenizer that belongs to the model",
            )
        return cut

    def _refuse(self, line: int, reason: str, remedy: str) -> NoReturn:
        raise InvalidParameter(f"line {line}: {reason}; {remedy}", param=self.param)


def _example(ids: list[int], learned: list[bool], line: int) -> Example:
    return Example(np.array(ids, dtype=np.int32), np.array(learned, dtype=np.bool_), line)
