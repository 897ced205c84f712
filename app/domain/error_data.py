"""Errors as data, so that they cross process boundaries."""

from __future__ import annotations

from typing import Any

from app.domain.errors import BitmillError


def error_classes() -> dict[str, type[BitmillError]]:
    """Every class of the tree by its code, so that an error can cross a process boundary as data."""
    found: dict[str, type[BitmillError]] = {}
    waiting: list[type[BitmillError]] = [BitmillError]
    while waiting:
        cls = waiting.pop()
        found[cls.code] = cls
        waiting.extend(cls.__subclasses__())
    return found


def error_from_dict(data: dict[str, Any]) -> BitmillError:
    """The inverse of `to_dict`; an unknown code becomes a plain BitmillError."""
    cls = error_classes().get(data.get("code") or "", BitmillError)
    return cls(str(data.get("message", "")), param=data.get("param"))
