"""`bitmill fine-tune`: training through OpenAI's fine-tuning jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from app.cli import tables
from app.cli.parameters import read_parameters
from app.cli.progress import follow_job
from app.client import BitmillClient
from app.domain.files import FILE_ID, FilePurpose
from app.domain.fine_tuning import Adapter

Connect = Callable[[], BitmillClient]


@click.command("fine-tune")
@click.argument("model")
@click.argument("training_file")
@click.option("--validation-file", help="A path or an uploaded file's id, measured after each epoch.")
@click.option(
    "--adapter", type=click.Choice([adapter.value for adapter in Adapter]), default=Adapter.QLORA.value,
    show_default=True, help="What is trained.",
)  # fmt: skip
@click.option("--epochs", type=click.IntRange(1, 1000), help="Passes over the data.  [default: automatic]")
@click.option("--batch-size", type=click.IntRange(1, 1024), help="Examples per step.  [default: automatic]")
@click.option("--learning-rate-multiplier", type=click.FloatRange(min=0, min_open=True), help="[default: 1]")
@click.option(
    "--set", "parameters", multiple=True, metavar="NAME=VALUE",
    help="A further option, such as rank=8, merge=true or quantization.group_size=64. Repeatable.",
)  # fmt: skip
@click.option("--suffix", help="A part of the new model's name.")
@click.option("--seed", type=click.IntRange(min=0), help="[default: 0]")
@click.option("--wait", is_flag=True, help="Follow the job to its end and show what it found.")
@click.pass_obj
def fine_tune(
    connect: Connect, /, model: str, training_file: str, validation_file: str | None, adapter: str,
    parameters: tuple[str, ...], wait: bool, suffix: str | None, seed: int | None, **given: Any,
) -> None:  # fmt: skip
    """Train MODEL on TRAINING_FILE: a JSONL file here, which is uploaded, or an uploaded file's id."""
    names = {"epochs": "n_epochs"}
    hyperparameters = {names.get(name, name): value for name, value in given.items() if value is not None}
    with connect() as client:
        options: dict[str, Any] = {
            "validation_file": validation_file and _file_id(client, validation_file), "suffix": suffix, "seed": seed,
        }  # fmt: skip
        job = client.fine_tune(
            model,
            _file_id(client, training_file),
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            bitmill={"adapter": adapter, **read_parameters(parameters)},
            **{name: value for name, value in options.items() if value is not None},
        )
        click.echo(job["id"])
        if wait:
            _show(client, job["id"])


def _file_id(client: BitmillClient, text: str) -> str:
    if FILE_ID.fullmatch(text):
        return text
    if not Path(text).is_file():
        raise click.BadParameter(f"{text!r} is neither a file here nor the id of an uploaded one")
    return str(client.upload_file(Path(text), FilePurpose.FINE_TUNE)["id"])


def _show(client: BitmillClient, job_id: str) -> None:
    job = follow_job(client, job_id, Console(stderr=True))
    if job["status"] != "succeeded":
        reason = job["error"]["message"] if job["error"] else job["status"]
        raise click.ClickException(f"{job_id} {job['status']}: {reason}")
    Console(stderr=True).print(tables.training(job))
    click.echo(job["fine_tuned_model"])
