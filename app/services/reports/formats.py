"""A comparison in each format that it can be had in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any, Final

from app.services.reports.columns import COLUMNS, PLAIN_COLUMNS, failed_rows, measured_rows
from app.services.reports.page import write_page
from app.services.reports.words import how_measured

Json = dict[str, Any]


def write_report(comparison: Json, format_: str) -> tuple[str, str]:
    """The report's text and its media type."""
    write, media_type = FORMATS[format_]
    return write(comparison), media_type


def _json(comparison: Json) -> str:
    return json.dumps(comparison, indent=1) + "\n"


def _csv(comparison: Json) -> str:
    """https://www.rfc-editor.org/rfc/rfc4180; a cell without a figure is empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(PLAIN_COLUMNS)
    for row in comparison["rows"]:
        writer.writerow([read(row) for read in PLAIN_COLUMNS.values()])
    return text.getvalue()


def _markdown(comparison: Json) -> str:
    heads = [head for head, _ in COLUMNS]
    lines = [f"# Methods for {comparison['model']}", "", *(f"- {line}" for line in comparison["verdict"]), ""]
    lines += [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for row in measured_rows(comparison):
        cells = [cell(row).replace("|", "\\|") for _, cell in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {row['label']}: {row['error']['message']}" for row in failed_rows(comparison))]
    return "\n".join([*lines, "", *how_measured(comparison)]) + "\n"


FORMATS: Final[dict[str, tuple[Callable[[Json], str], str]]] = {
    "json": (_json, "application/json"),
    "csv": (_csv, "text/csv; charset=utf-8"),
    "markdown": (_markdown, "text/markdown; charset=utf-8"),
    "html": (write_page, "text/html; charset=utf-8"),
}
