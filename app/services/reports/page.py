"""The page: verdict, table and plots in one file, which asks nothing of the network and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from app.services.reports.columns import COLUMNS, failed_rows, measured_rows, memory_bytes
from app.services.reports.plots import Dot, bars, scatter
from app.services.reports.words import how_measured

Json = dict[str, Any]

COMPARED_AT: Final = "8"
KL_TITLE: Final = "KL divergence from the original (nats per token)"
STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #59636e; --line: #d5dae0; --page: #ffffff;
  --accent: #0b62c4; --plain: #8a949e; --bar: #7fb0e6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaee; --soft: #a3adb8; --line: #39414a; --page: #14181c;
  --accent: #6cb2ff; --plain: #8a949e; --bar: #2f6fb3; } }
body { margin: 0 auto; max-width: 1080px; padding: 24px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 32px 0 8px; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { padding: 6px 8px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom; }
td { white-space: nowrap; font-variant-numeric: tabular-nums; } th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; } tr.front td:first-child { font-weight: 600; color: var(--accent); }
figure { margin: 0; } svg { width: 100%; max-width: 900px; height: auto; font-family: inherit; }
figcaption, .notes { color: var(--soft); font-size: 13px; }
svg .tick { fill: var(--soft); font-size: 12px; } svg .label { fill: var(--ink); font-size: 12px; }
svg .title { fill: var(--ink); font-size: 13px; } svg .grid { stroke: var(--line); }
svg .front { fill: var(--accent); } svg .dot { fill: var(--page); stroke: var(--plain); stroke-width: 2; }
svg .error { stroke: var(--plain); fill: none; } svg .leader { stroke: var(--plain); stroke-width: 0.7; }
svg .bar { fill: var(--bar); }
"""


def write_page(comparison: Json) -> str:
    rows = measured_rows(comparison)
    title = f"Methods for {comparison['model']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _list(comparison["verdict"]) or f"<p>{escape(comparison['status'])}: nothing to judge yet.</p>",
        f'<div class="table">{_table(rows)}</div>',
        _failures(failed_rows(comparison)),
        _plots(rows),
        f'<div class="notes">{"".join(f"<p>{escape(line)}</p>" for line in how_measured(comparison))}</div>',
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "".join(parts)
    return f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n'


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _table(rows: Sequence[Json]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in COLUMNS)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{escape(cell(row))}</td>" for _, cell in COLUMNS)
        front = row["on_pareto_front"]["size_speed_and_kl_divergence"]
        lines.append(f'<tr class="front">{cells}</tr>' if front else f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _failures(rows: Sequence[Json]) -> str:
    if not rows:
        return ""
    reasons = [f"{row['label']}: {row['error']['message']}" for row in rows]
    return f"<h2>Not measured</h2>{_list(reasons)}"


def _plots(rows: Sequence[Json]) -> str:
    by_size = [dot for row in rows if (dot := _dot(row, _megabytes(row["size_bytes"]), "size_and_kl_divergence"))]
    rates = [(row, row["decode_tokens_per_second"].get(COMPARED_AT)) for row in rows]
    by_speed = [dot for row, rate in rates if (dot := _dot(row, rate, "speed_and_kl_divergence"))]
    memory = [(row["label"], count / 1e6) for row in rows if (count := memory_bytes(row))]
    found = []
    if by_size:
        plot = scatter(by_size, title="Size against KL divergence", x_title="size on disk (MB)", y_title=KL_TITLE)
        found.append(_figure("Size against KL divergence", plot, "Better is lower and farther left."))
    if by_speed:
        x_title = f"decode speed at {COMPARED_AT} requests at a time (tokens/s)"
        plot = scatter(by_speed, title="Decode speed against KL divergence", x_title=x_title, y_title=KL_TITLE)
        found.append(_figure("Decode speed against KL divergence", plot, "Better is lower and farther right."))
    if memory:
        plot = bars(memory, title="Memory of the serving engine", x_title="memory while served (MB)")
        found.append(_figure("Memory of the serving engine", plot, "Shorter is better."))
    return "".join(found)


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e6


def _dot(row: Json, x: float | None, front: str) -> Dot | None:
    divergence = row["kl_divergence"]
    if x is None or divergence is None:
        return None
    return Dot(
        label=row["label"], x=x, y=max(divergence["value"], 0.0), error=divergence["standard_error"],
        on_front=bool(row["on_pareto_front"][front]),
    )  # fmt: skip


def _figure(title: str, plot: str, hint: str) -> str:
    note = f"{hint} Filled: on the Pareto front of the two." if "KL" in title else hint
    return f"<h2>{escape(title)}</h2><figure>{plot}<figcaption>{escape(note)}</figcaption></figure>"
