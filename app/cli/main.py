"""The commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console

import app
from app.cli import contracts, launch, tables
from app.cli import demo as demonstration
from app.cli.comparisons import compare, comparisons
from app.cli.contracts import contract_options, read_contract
from app.cli.evaluations import evaluate, recommend
from app.cli.exports import export, push
from app.cli.files import files
from app.cli.parameters import read_parameters
from app.cli.progress import follow_job
from app.cli.serving import deployments, engines
from app.cli.training import fine_tune
from app.client import BitmillClient, RequestFailed
from app.settings import get_settings


class Group(click.Group):
    """Turns the server's errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RequestFailed as error:
            raise click.ClickException(str(error)) from error
        except httpx.ConnectError as error:
            raise click.ClickException(
                f"no Bitmill answers at {_url()} ({error}); start one with `bitmill up`"
            ) from error


def _url() -> str:
    settings = get_settings()
    return os.environ.get("BITMILL_URL", f"http://{settings.host}:{settings.port}")


def _client() -> BitmillClient:
    keys = get_settings().api_keys
    return BitmillClient(_url(), api_key=keys[0] if keys else None)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(app.__version__, prog_name="bitmill")
@click.pass_context
def cli(context: click.Context) -> None:
    """Quantize language models as durable jobs, measure what it cost, serve the result."""
    context.obj = _client  # for the groups in files of their own


@cli.command()
@click.option("--host", help="Address the API listens on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port the API listens on.  [default: 8000]")
@click.option("--data", type=click.Path(path_type=Path), help="Data folder.  [default: bitmill-data]")
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes.  [default: one, or one for each GPU]")
def up(host: str | None, port: int | None, data: Path | None, workers: int | None) -> None:
    """Run API, worker and serving host together until Ctrl-C."""
    sys.exit(launch.up(host=host, port=port, data=data, workers=workers))


@cli.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on.  [default: 8000]")
def api(host: str | None, port: int | None) -> None:
    """Run the API alone."""
    settings = get_settings()
    if settings.api_processes > 1:  # else it says so itself; but one of several is started again whenever it ends
        launch.require_installation(dict(os.environ))
    command = launch.api_command(host or settings.host, settings.port if port is None else port, settings.api_processes)
    launch.replace_process(command, launch.api_environment(settings))


@cli.command()
def worker() -> None:
    """Run one worker: it takes jobs from the queues that its machine can serve."""
    launch.replace_process(launch.worker_command("worker"))


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8001, show_default=True, help="Port to listen on.")
def serving(host: str, port: int) -> None:
    """Run one serving host: it loads models and generates."""
    launch.replace_process(launch.serving_command(host, port))


@cli.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    launch.migrate(dict(os.environ))


@cli.command()
@click.option("--data", type=click.Path(path_type=Path), help="Data folder.  [default: bitmill-data]")
def adopt(data: Path | None) -> None:
    """Have the database keep the data folder, where they do not belong together and no process starts.

    For after a restore, or a move, that was meant. Nothing is deleted.
    """
    click.echo(launch.adopt(data))


@cli.command()
@click.argument("model")
@click.option(
    "--method", default="gguf", show_default=True,
    help="Method; `bitmill methods` lists them. auto searches for the smallest that meets the terms given below.",
)  # fmt: skip
@click.option(
    "--set", "parameters", multiple=True, metavar="NAME=VALUE",
    help="A parameter of the method, such as quantization=Q5_K_M or calibration.samples=64. Repeatable.",
)  # fmt: skip
@click.option("--suffix", help="Ends the new model's name.")
@click.option("--gate", type=click.Choice(["on", "off"]), default="on", help="off keeps an artifact of poor quality.")
@contract_options
@click.option("--wait", is_flag=True, help="Follow the job to its end.")
def quantize(
    model: str, method: str, parameters: tuple[str, ...], suffix: str | None, gate: str, wait: bool, **terms: Any
) -> None:
    """Submit a quantization job for MODEL."""
    values = read_parameters(parameters)
    with _client() as client:
        job = client.submit(model, {"type": method, **values}, suffix=suffix, gate=gate, contract=read_contract(terms))
        click.echo(job["id"])
        if wait:
            _wait(client, job["id"])


def _wait(client: BitmillClient, job_id: str) -> None:
    console = Console(stderr=True)
    job = follow_job(client, job_id, console)
    findings = job.get("contract_proof") or (job["error"] or {}).get("details")
    if findings:
        console.print(contracts.tried(findings))
    if job["status"] != "succeeded":
        reason = job["error"]["message"] if job["error"] else job["status"]
        raise click.ClickException(f"{job_id} {job['status']}: {reason}")
    click.echo(job.get("quantized_model") or job.get("fine_tuned_model") or job_id)


@cli.group()
def jobs() -> None:
    """List, show, follow, pause, resume and cancel jobs."""


@jobs.command("list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
def list_jobs(limit: int) -> None:
    """The newest jobs."""
    with _client() as client:
        Console().print(tables.jobs(client.jobs(limit=limit)))


@jobs.command("show")
@click.argument("job_id")
def show_job(job_id: str) -> None:
    """One job, whole."""
    with _client() as client:
        Console().print_json(data=client.job(job_id))


@jobs.command("follow")
@click.argument("job_id")
def follow(job_id: str) -> None:
    """Show a job's progress until it ends."""
    with _client() as client:
        _wait(client, job_id)


@jobs.command("pause")
@click.argument("job_id")
def pause_job(job_id: str) -> None:
    """Have a fine-tuning job save a checkpoint and wait."""
    with _client() as client:
        click.echo(f"{job_id} {client.pause(job_id)['status']}")


@jobs.command("resume")
@click.argument("job_id")
def resume_job(job_id: str) -> None:
    """Let a paused fine-tuning job go on from its last checkpoint."""
    with _client() as client:
        click.echo(f"{job_id} {client.resume(job_id)['status']}")


@jobs.command("cancel")
@click.argument("job_id")
def cancel_job(job_id: str) -> None:
    """End a job."""
    with _client() as client:
        click.echo(f"{job_id} {client.cancel(job_id)['status']}")


cli.add_command(compare)
cli.add_command(comparisons)
cli.add_command(evaluate)
cli.add_command(recommend)
cli.add_command(fine_tune)
cli.add_command(export)
cli.add_command(push)
cli.add_command(files)
cli.add_command(deployments)
cli.add_command(engines)


@cli.command()
def methods() -> None:
    """What models can be quantized with, and what is available here."""
    with _client() as client:
        Console().print(tables.methods(client.methods()))


@cli.command()
def models() -> None:
    """The models that can be served."""
    with _client() as client:
        Console().print(tables.models(client.models()))


@cli.command()
def workers() -> None:
    """The live workers and their hardware."""
    with _client() as client:
        Console().print(tables.workers(client.workers()))


@cli.command()
@click.option("--data", type=click.Path(path_type=Path), help="Data folder.  [default: bitmill-data]")
def demo(data: Path | None) -> None:
    """Quantize a small model twice, measure both and ask them a question."""
    sys.exit(demonstration.run(data))


if __name__ == "__main__":
    cli()
