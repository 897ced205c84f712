"""`bitmill evaluate` and `bitmill recommend`: what a model is worth, and how to make it smaller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from rich.console import Console

from app.cli import tables
from app.cli.progress import follow_job
from app.client import BitmillClient
from app.domain.evaluation import Metric
from app.domain.recommendation import DEVICES, Goal

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
@click.option("--task", "tasks", multiple=True, help="A task of lm-evaluation-harness, such as hellaswag; repeatable.")
@click.option("--task-limit", type=click.IntRange(min=1), help="Documents of each task at most.  [default: all]")
@click.option("--wait", is_flag=True, help="Follow the job to its end and show what it found.")
@click.pass_obj
def evaluate(connect: Connect, /, model: str, metrics: tuple[str, ...], wait: bool, **options: Any) -> None:
    """Measure MODEL: quality against its original, memory, speed, and answers to tasks."""
    body = {name: value for name, value in options.items() if value not in (None, ())}
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


@click.command()
@click.argument("model")
@click.option("--device", type=click.Choice(["auto", *DEVICES]), default="auto", show_default=True)
@click.option("--goal", type=click.Choice([goal.value for goal in Goal]), default="quality", show_default=True)
@click.option("--memory", "memory_bytes", type=click.IntRange(min=1), help="Bytes, in place of the device's own.")
@click.option("--context-length", type=click.IntRange(min=64), default=4096, show_default=True)
@click.option("--concurrency", type=click.IntRange(1, 1024), default=1, show_default=True, help="Requests at a time.")
@click.pass_obj
def recommend(connect: Connect, /, model: str, **options: Any) -> None:
    """Which methods suit MODEL, best first, and why."""
    body = {name: value for name, value in options.items() if value is not None}
    with connect() as client:
        answer = client.recommend(model, **body)
    console = Console()
    console.print(tables.recommendation(answer))
    device, rule = answer["device"], answer["rule"]
    console.print(f"Decided by {answer['decided_by']} for a {device['class']}: {rule['reason']} ({rule['source']}).")
    for line in answer["would_change"]:
        console.print(f"- {line}")
