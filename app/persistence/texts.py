"""Texts as every database takes them, and of a length that rows, events and answers can bear."""

from __future__ import annotations

from typing import Any, Final

# Characters: a message for people, with room for a long list in it.
LONGEST: Final = 8_000


def storable(value: Any) -> Any:
    """The same value, where strings hold neither NUL nor halves of surrogate pairs, and none is endless.

    PostgreSQL refuses the first, every driver the second. Texts of errors come from libraries, which quote what they
    were given.
    """
    if isinstance(value, str):
        return _storable_text(value)
    if isinstance(value, dict):
        return {storable(key): storable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [storable(each) for each in value]
    return value


def _storable_text(text: str) -> str:
    clean = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
    if len(clean) <= LONGEST:
        return clean
    return f"{clean[: LONGEST // 2]} \N{HORIZONTAL ELLIPSIS} {clean[-LONGEST // 2 :]}"
