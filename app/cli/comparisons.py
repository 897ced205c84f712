"""`bitmill compare` and `bitmill comparisons`: several methods for one model, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from app.cli import tables
from app.cli.parameters import read_parameters
from app.client import BitmillClient
from app.domain.comparison import METHOD_SETS

Connect = Callable[[], BitmillClient]
Json = dict[str, Any]

POLL_SECONDS: Final = 1.0
# The format that a report's file name asks for.
SUFFIXES: Final = {".html": "html", ".htm": "html", ".md": "markdown", ".csv": "csv", ".json": "json"}


def _report_path(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in SUFFIXES:
        raise click.BadParameter(f"{str(value)!r} should end in one of {', '.join(SUFFIXES)}")
    return value


REPORT: Final = click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), callback=_report_path,
    help="File to write: .html, .md, .csv or .json.",
)  # fmt: skip


@click.command()
@click.argument("model")
@click.option("--set", "method_set", type=click.Choice(list(METHOD_SETS)), help="A set of methods.")
@click.option(
    "--method", "methods", multiple=True, metavar="TYPE[,NAME=VALUE…]",
    help="A method with its parameters, such as gguf,quantization=Q5_K_M. Repeatable.",
)  # fmt: skip
@click.option("--dataset", default="builtin", show_default=True, help="A named data set, or an uploaded file's id.")
@click.option("--samples", type=click.IntRange(1, 4096), default=32, show_default=True, help="Windows scored at most.")
@click.option("--context-length", type=click.IntRange(8, 32768), default=512, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True)
@REPORT
@click.option("--wait/--no-wait", default=True, show_default=True, help="Follow it to its end and show the table.")
@click.pass_obj
def compare(
    connect: Connect, /, model: str, method_set: str | None, methods: tuple[str, ...], report: Path | None, wait: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Quantize MODEL with several methods and measure them side by side."""
    if bool(methods) == (method_set is not None):
        raise click.UsageError("give either --set or at least one --method")
    if report is not None and not wait:
        raise click.UsageError("--report needs the comparison's end; leave out --no-wait")
    chosen = {"set": method_set} if method_set else {"methods": [read_method(text) for text in methods]}
    with connect() as client:
        comparison = client.compare(model, **chosen, **options)
        click.echo(comparison["id"])
        if wait:
            _show(client, follow(client, comparison, Console(stderr=True)), report)


def read_method(text: str) -> Json:
    """`gptq,bits=3,calibration.samples=64` as the API takes it."""
    name, *parameters = text.split(",")
    return {"type": name, **read_parameters(parameters)}


def follow(client: BitmillClient, comparison: Json, console: Console) -> Json:
    """Shows the progress of every row until the comparison has ended, and returns it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[stage]}"))
    with Progress(*columns, console=console) as progress:
        tasks: dict[int, TaskID] = {}
        while True:
            for number, row in enumerate(comparison["rows"]):
                _update(progress, tasks, number, row)
            if comparison["status"] != "running":
                return comparison
            time.sleep(POLL_SECONDS)
            comparison = client.comparison(comparison["id"])


def _update(progress: Progress, tasks: dict[int, TaskID], number: int, row: Json) -> None:
    if number not in tasks:
        tasks[number] = progress.add_task(row["label"], total=1.0, stage="")
    stage = row["stage"] if row["status"] == "running" and row["stage"] else row["status"]
    progress.update(tasks[number], completed=row["fraction"], stage=stage, description=row["label"])


@click.group()
def comparisons() -> None:
    """List, show, follow and cancel comparisons."""


@comparisons.command("list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@click.pass_obj
def list_comparisons(connect: Connect, /, limit: int) -> None:
    """The newest comparisons."""
    with connect() as client:
        Console().print(tables.comparisons(client.comparisons(limit=limit)))


@comparisons.command("show")
@click.argument("comparison_id")
@click.option("--follow", "wait", is_flag=True, help="Show its progress until it ends.")
@REPORT
@click.pass_obj
def show_comparison(connect: Connect, /, comparison_id: str, wait: bool, report: Path | None) -> None:
    """One comparison, as far as it is."""
    with connect() as client:
        comparison = client.comparison(comparison_id)
        _show(client, follow(client, comparison, Console(stderr=True)) if wait else comparison, report)


@comparisons.command("cancel")
@click.argument("comparison_id")
@click.pass_obj
def cancel_comparison(connect: Connect, /, comparison_id: str) -> None:
    """End a comparison and its jobs."""
    with connect() as client:
        click.echo(f"{comparison_id} {client.cancel_comparison(comparison_id)['status']}")


def _show(client: BitmillClient, comparison: Json, report: Path | None) -> None:
    if comparison["status"] == "cancelled":
        raise click.ClickException(f"{comparison['id']} was cancelled")
    console = Console()
    console.print(tables.comparison(comparison))
    for row in comparison["rows"]:
        if row["error"]:
            console.print(f"{row['label']} failed: {row['error']['message']}", markup=False)
    for line in comparison["verdict"]:
        console.print(f"- {line}", markup=False)
    if report is not None:
        report.write_text(client.comparison_report(comparison["id"], SUFFIXES[report.suffix.lower()]), encoding="utf-8")
        console.print(f"The report is in {report}.", markup=False)
    if comparison["status"] == "failed":
        raise click.ClickException(f"{comparison['id']} {comparison['status']}: no method could be measured")
