"""The keywords of a JSON schema, wherever they stand in it. https://json-schema.org/draft/2020-12/json-schema-core"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

# Keywords whose value is a schema, a list of schemas, or schemas by name.
SCHEMAS: Final = frozenset(
    {
        "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
        "unevaluatedItems", "unevaluatedProperties",
    }
)  # fmt: skip
LISTS: Final = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
BY_NAME: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})


def keywords(schema: Any) -> dict[str, Any]:
    """Every keyword with one of its values: names of properties are none."""
    found: dict[str, Any] = {}
    for each in _schemas(schema):
        for name, value in each.items():
            found.setdefault(name, value)
    return found


def without(schema: Any, keyword: str) -> Any:
    """The same schema without a keyword, wherever it stands."""
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if name != keyword}
    return {name: _inside(name, value, lambda inner: without(inner, keyword)) for name, value in kept.items()}


def _schemas(schema: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(schema, dict):
        return
    yield schema
    inner: list[Any] = []
    for name, value in schema.items():
        _inside(name, value, inner.append)
    for each in inner:
        yield from _schemas(each)


def _inside(name: str, value: Any, change: Callable[[Any], Any]) -> Any:
    """A keyword's value with every schema right below it changed."""
    if name in BY_NAME and isinstance(value, dict):
        return {key: change(each) for key, each in value.items()}
    if name in LISTS and isinstance(value, list):
        return [change(each) for each in value]
    return change(value) if name in SCHEMAS else value
