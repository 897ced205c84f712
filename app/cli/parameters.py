"""A method's parameters as they are given on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click


def read_parameters(texts: Iterable[str]) -> dict[str, Any]:
    """Reads NAME=VALUE, each. Raises click.BadParameter."""
    values: dict[str, Any] = {}
    for text in texts:
        _set_parameter(values, text)
    return values


def _set_parameter(values: dict[str, Any], text: str) -> None:
    """Reads NAME=VALUE; the value is JSON or else text, and a dot in the name leads into an object."""
    path, separator, value = text.partition("=")
    if not separator:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--set")
    *parents, name = path.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    try:
        values[name] = json.loads(value)
    except ValueError:
        values[name] = value
