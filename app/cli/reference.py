"""The reference pages of the docs, generated from what they describe: `python -m app.cli.reference`.

A test compares them with the files in docs/, so that neither can drift.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Final

import click

from app.domain.quantization.catalog import CATALOG
from app.domain.quantization.spec import MethodSpec
from app.settings import Settings

DOCS: Final = Path(__file__).parents[2] / "docs"


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Every setting is an environment variable. Times are in seconds, sizes in bytes.",
        "",
        "| variable | default | meaning |",
        "| --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        lines.append(f"| `BITMILL_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"


def methods_page() -> str:
    lines = [
        "# Methods",
        "",
        "`GET /v1/quantization/methods` answers the same with JSON schemas, and says what is available here.",
        "",
    ]
    for spec in CATALOG.values():
        lines += _method_section(spec)
    return "\n".join(lines)


def _method_section(spec: MethodSpec) -> list[str]:
    devices = " or ".join(sorted(device.value.upper() for device in spec.devices))
    lines = [f"## `{spec.name}`", "", f"{spec.summary}. Writes {spec.output.value}; runs on a {devices}.", ""]
    if spec.architectures:
        others = f" Others need the setting `BITMILL_{spec.widened_by.upper()}`." if spec.widened_by else ""
        lines += [f"Architectures: {', '.join(sorted(spec.architectures))}.{others}", ""]
    lines += ["| parameter | values | default | meaning |", "| --- | --- | --- | --- |"]
    return [*lines, *_parameter_rows(spec.params.model_json_schema()), ""]


def _parameter_rows(schema: dict[str, Any]) -> list[str]:
    """A row for each parameter; one that is an object of named fields has a row for each of those too."""
    rows = []
    for path, field in _fields(schema, schema.get("$defs", {}), ""):
        meaning = field.get("description", "").replace("|", "\\|")
        rows.append(f"| `{path}` | {_values(field)} | {_default(field)} | {meaning} |")
    return rows


def _fields(schema: dict[str, Any], definitions: dict[str, Any], prefix: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, field in schema.get("properties", {}).items():
        found.append((prefix + name, field))
        reference = field.get("$ref", "").rpartition("/")[2]
        if reference:
            found += _fields(definitions[reference], definitions, f"{prefix}{name}.")
    return found


def _default(field: dict[str, Any]) -> str:
    """Of an object whose fields have rows of their own, those tell the defaults."""
    value = field.get("default")
    if value is None or "$ref" in field:
        return ""
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _values(field: dict[str, Any]) -> str:
    if "anyOf" in field:  # a value that may be left out
        return " or ".join(_values(option) for option in field["anyOf"] if option.get("type") != "null")
    if "additionalProperties" in field:
        return f"object of {_values(field['additionalProperties'])}"
    known = ", ".join(str(value) for value in field.get("enum", []))
    return known or ("object" if "$ref" in field else str(field.get("type", "")))


def commands_page() -> str:
    from app.cli.main import cli

    lines = ["# Commands", ""]
    for path, command in _walk(cli, ["bitmill"]):
        context = click.Context(command, info_name=shlex.join(path), max_content_width=100, **cli.context_settings)
        lines += [f"## `{shlex.join(path)}`", "", "```text", command.get_help(context).rstrip(), "```", ""]
    return "\n".join(lines)


def _walk(command: click.Command, path: list[str]) -> list[tuple[list[str], click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            found += _walk(child, [*path, name])
    return found


PAGES: Final = {"settings.md": settings_page, "methods.md": methods_page, "commands.md": commands_page}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
