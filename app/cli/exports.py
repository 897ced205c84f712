"""`bitmill export` and `bitmill push`: what jobs made, for use elsewhere."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from app.client import BitmillClient

Connect = Callable[[], BitmillClient]


@click.command()
@click.argument("model")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.pass_obj
def export(connect: Connect, model: str, folder: Path) -> None:
    """Download MODEL with its card into FOLDER, and check every file.

    What is there already with the right checksum is kept, and a download that broke off goes on.
    """
    with connect() as client:
        fetch(client, model, folder)
    click.echo(str(folder))


@click.command()
@click.argument("model")
@click.argument("repository")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Keep the downloaded files here.")
@click.pass_obj
def push(connect: Connect, model: str, repository: str, private: bool, folder: Path | None) -> None:
    """Upload MODEL with its card to REPOSITORY (org/name) on the Hugging Face hub.

    The files come from the server to this machine and go to the hub from here, with the token of HF_TOKEN or of
    `hf auth login`: the server never sees it. HF_ENDPOINT names another hub.
    """
    with connect() as client, tempfile.TemporaryDirectory() as temporary:
        kept = folder or Path(temporary)
        fetch(client, model, kept)
        click.echo(_upload(kept, repository, f"Upload {model}", private=private))


def _upload(folder: Path, repository: str, message: str, *, private: bool) -> str:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise click.ClickException("pushing needs huggingface_hub: pip install huggingface-hub") from error
    hub: Any = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message).commit_url)
    except (HfHubHTTPError, OSError) as error:
        raise click.ClickException(f"the hub did not take {repository!r}: {error}") from error


def fetch(client: BitmillClient, model: str, folder: Path) -> None:
    """Downloads a model's files into the folder. Raises ClickException for a file that does not arrive whole."""
    files = client.model_files(model)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for file in files:
            task = progress.add_task(file["name"], total=file["size_bytes"])
            _fetch_file(client, model, file, folder, _reporter(progress, task))


def _reporter(progress: Progress, task: TaskID) -> Callable[[int], None]:
    return lambda size_bytes: progress.update(task, completed=size_bytes)


def _fetch_file(
    client: BitmillClient, model: str, file: dict[str, Any], folder: Path, report: Callable[[int], None]
) -> None:
    target = folder / _safe(file["name"])
    if target.is_file() and _sha256(target) == file["sha256"]:
        report(file["size_bytes"])
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.partial")
    _download(part, partial(client.download, model, file["name"]), file["size_bytes"], report)
    if _sha256(part) != file["sha256"]:
        part.unlink()
        raise click.ClickException(f"{file['name']} arrived with a wrong checksum; run the command again")
    part.rename(target)


def _download(part: Path, download: Callable[..., Any], size_bytes: int, report: Callable[[int], None]) -> None:
    """Goes on where an earlier download stopped."""
    there = part.stat().st_size if part.is_file() else 0
    start = there if there < size_bytes else 0  # more than the whole is of another version
    with part.open("r+b" if start else "wb") as output:
        output.seek(start)
        for piece in download(start=start):
            output.write(piece)
            report(output.tell())


def _safe(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise click.ClickException(f"the server names a file {name!r}, which lies outside the folder; nothing was done")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
