"""`bitmill evaluate`: what a model is worth and what it takes, measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from rich.console import Console

from app.cli import tables
from app.cli.progress import follow_job
from app.client import BitmillClient
from app.domain.evaluation import Metric

Connect = Callable[[], BitmillClient]


@click.command()
@click.argument("model")
@click.option("--reference", help="The original to compare with.  [default: the model's own source]")
@click.option("--dataset", default="builtin", show_default=True, help="A named data set, or an uploaded file's id.")
@click.option(
    "--metric", "metrics", multiple=True, type=click.Choice([metric.value for metric in Metric]),
    help="What to measure; repeatable.  [default: everything]",
)  # fmt: skip
@click.option("--samples", type=click.IntRange(1, 4096), default=32, show_default=True, help="Windows scored at most.")
@click.option("--context-length", type=click.IntRange(8, 32768), default=512, show_default=True)
@click.option("--engine", help="The engine to time.  [default: the one that serves the model]")
@click.option("--wait", is_flag=True, help="Follow the job to its end and show what it found.")
@click.pass_obj
def evaluate(connect: Connect, /, model: str, metrics: tuple[str, ...], wait: bool, **options: Any) -> None:
    """Measure MODEL: quality against its original, memory and speed."""
    body = {name: value for name, value in options.items() if value is not None}
    with connect() as client:
        job = client.evaluate(model, **body, **({"metrics": list(metrics)} if metrics else {}))
        click.echo(job["id"])
        if wait:
            _show(client, job["id"])


def _show(client: BitmillClient, job_id: str) -> None:
    job = follow_job(client, job_id, Console(stderr=True))
    if job["status"] != "succeeded":
        reason = job["error"]["message"] if job["error"] else job["status"]
        raise click.ClickException(f"{job_id} {job['status']}: {reason}")
    Console().print(tables.evaluation(job["result"]))
