"""Conversations through a model's chat template, and which of the tokens the assistant writes.

Where the template marks them ({% generation %}), the marks count. Elsewhere the text up to each answer is rendered as
a server would, with the words that open an answer: what the template adds to it with the answer is the answer. An
answer's end token is part of it, and what the template writes after that is not: a server never lets a model write it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from itertools import groupby
from typing import Any, Final

from app.domain.training_data import Conversation

GENERATION_MARK: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Where a mask of marked tokens is True, as places from start to end.
Span = tuple[int, int]


def render(tokenizer: Any, record: Conversation, stops: frozenset[int]) -> tuple[list[int], list[bool]]:
    """Token ids of the whole conversation, and whether each is learned. `stops` are the tokens that end a turn.

    Raises ValueError, or what the template raises, where it does not write this conversation in one piece.
    """
    messages, tools = record.template_messages(), record.template_tools()
    _require_place_for_tools(tokenizer, record, messages, tools)
    if _has_marks(tokenizer, tools):
        ids, spans = _marked(tokenizer, messages, tools)
    else:
        ids, spans = _by_prefixes(tokenizer, record, messages, tools)
    answers = [message for message in record.messages if message.role == "assistant"]
    if len(spans) != len(answers):
        raise ValueError(f"it marks {len(spans)} answers of {len(answers)}; answers without text cannot be learned")
    learned = [False] * len(ids)
    for (start, end), message in zip(spans, answers, strict=True):
        if message.is_learned:
            stop = _end_of_turn(ids, start, end, stops)
            learned[start:stop] = [True] * (stop - start)
    return _closed(tokenizer, ids, learned, stops)


def _require_place_for_tools(
    tokenizer: Any, record: Conversation, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> None:
    """Templates that know nothing of tools leave them out without a word."""
    called = [call.function.name for message in record.messages for call in message.tool_calls or ()]
    names = [*(tool.function.name for tool in record.tools or ()), *called]
    text = _text(tokenizer, messages, tools) if names else ""
    missing = next((name for name in names if name not in text), None)
    if missing is not None:
        raise ValueError(f"it has no place for the tool {missing!r}; leave tools and their calls out")


def _has_marks(tokenizer: Any, tools: list[dict[str, Any]] | None) -> bool:
    return GENERATION_MARK.search(tokenizer.get_chat_template(tools=tools)) is not None


def _marked(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> tuple[list[int], list[Span]]:
    encoded = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    spans, place = [], 0
    for marked, run in groupby(encoded["assistant_masks"]):
        length = len(list(run))
        if marked:
            spans.append((place, place + length))
        place += length
    return list(encoded["input_ids"]), spans


def _by_prefixes(
    tokenizer: Any, record: Conversation, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> tuple[list[int], list[Span]]:
    """Spans of every answer; of those that are not learned, empty ones."""
    whole = _text(tokenizer, messages, tools)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    # A token that reaches over a place belongs to what is before it.
    starts = [start for start, _ in encoded["offset_mapping"]]
    spans = []
    for number, message in enumerate(record.messages):
        if message.role != "assistant":
            continue
        start, end = _answer(tokenizer, messages, tools, number, whole) if message.is_learned else (0, 0)
        spans.append((bisect_left(starts, start), bisect_left(starts, end)))
    return list(encoded["input_ids"]), spans


def _answer(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, number: int, whole: str
) -> Span:
    """Where in the whole text the answer begins and ends that is message `number`."""
    before = _text(tokenizer, messages[:number], tools, add_generation_prompt=True)
    through = _text(tokenizer, messages[: number + 1], tools)
    if not through.startswith(before):
        raise ValueError(
            f"it opens the answer in messages[{number}] otherwise than when it asks for one, so that what the model "
            f"would learn is not what it will be asked for"
        )
    if not whole.startswith(through):
        raise ValueError(
            f"it writes the answer in messages[{number}] otherwise once more messages follow; give it weight 0, or "
            f"write one example that ends with each answer"
        )
    return len(before), len(through)


def _text(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **options: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options))


def _end_of_turn(ids: list[int], start: int, end: int, stops: frozenset[int]) -> int:
    """The end of an answer: after its last end token, or the one that stands right behind it."""
    if end < len(ids) and ids[end] in stops and not any(token in stops for token in ids[start:end]):
        return end + 1
    last = next((index for index in range(end - 1, start - 1, -1) if ids[index] in stops), None)
    return end if last is None else last + 1


def _closed(tokenizer: Any, ids: list[int], learned: list[bool], stops: frozenset[int]) -> tuple[list[int], list[bool]]:
    """A conversation whose last answer the template leaves open gets the end token: the model must learn to stop."""
    last = max((index for index, flag in enumerate(learned) if flag), default=None)
    is_open = last == len(ids) - 1 and ids[-1] not in stops
    if is_open and tokenizer.eos_token_id is not None:
        return [*ids, tokenizer.eos_token_id], [*learned, True]
    return ids, learned
