"""`bitmill files`: what was uploaded for jobs to use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from app.cli import tables
from app.client import BitmillClient
from app.domain.files import UPLOADABLE, FilePurpose

# Opens a connection to the server that the environment names; `bitmill` hands it down.
Connect = Callable[[], BitmillClient]

PURPOSES = [purpose.value for purpose in FilePurpose]
UPLOAD_PURPOSES = [purpose.value for purpose in UPLOADABLE]


@click.group()
def files() -> None:
    """Upload, list and delete files."""


@files.command("upload")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--purpose", type=click.Choice(UPLOAD_PURPOSES), required=True, help="What jobs will use it for.")
@click.pass_obj
def upload(connect: Connect, path: Path, purpose: str) -> None:
    """Upload the file at PATH and print its id.

    With the purpose `model` it is a .gguf file, or a .tar, .tar.gz or .zip of a checkpoint's folder; the id is then
    a model for `bitmill quantize`.
    """
    with connect() as client:
        click.echo(client.upload_file(path, purpose)["id"])


@files.command("list")
@click.option("--purpose", type=click.Choice(PURPOSES), help="Only files of this purpose.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.pass_obj
def list_files(connect: Connect, purpose: str | None, limit: int) -> None:
    """The newest files."""
    with connect() as client:
        Console().print(tables.files(client.files(purpose=purpose, limit=limit)))


@files.command("delete")
@click.argument("file_id")
@click.pass_obj
def delete_file(connect: Connect, file_id: str) -> None:
    """Delete a file that no unfinished job needs."""
    with connect() as client:
        client.delete_file(file_id)
        click.echo(f"{file_id} deleted")
