"""The commands for what is loaded, and for the engines that load it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click
from rich.console import Console

from app.cli import tables
from app.cli.files import Connect


@click.group()
def deployments() -> None:
    """List, load and unload models on the serving host."""


@deployments.command("list")
@click.pass_obj
def list_deployments(connect: Connect) -> None:
    """What is loaded, and what is to be."""
    with connect() as bitmill:
        Console().print(tables.deployments(bitmill.deployments()))


@deployments.command("load")
@click.argument("model")
@click.option("--engine", help="Engine; without it the best that is installed.")
@click.option("--context-length", type=click.IntRange(min=64), help="Longest prompt and answer together, in tokens.")
@click.option("--slots", type=click.IntRange(min=1), help="Requests worked on at a time.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine.")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Precision of the computation.")
@click.option("--keep-alive", help="How long it stays loaded when idle: seconds, or such as 10m; -1 for ever.")
@click.option("--pin", "pinned", is_flag=True, help="Never unload it for another; load it when the host starts.")
@click.option("--speculation", help="ngram, or the name of a draft model.")
@click.option("--adapter-rank", type=click.IntRange(1, 512), help="Largest rank of adapters to make room for.")
@click.pass_obj
def load(connect: Connect, /, model: str, speculation: str | None, **options: Any) -> None:
    """Load MODEL with these options, which are kept for later loads too."""
    given = {name: value for name, value in options.items() if value not in (None, False)}
    if speculation is not None:
        draft = None if speculation == "ngram" else speculation
        given["speculation"] = {"type": "draft", "draft_model": draft} if draft else {"type": "ngram"}
    with connect() as bitmill:
        view = bitmill.deploy(model, **given)
        # With a keep-alive of nothing it is gone again by now.
        loaded = view.get("load_seconds") is not None
        took = f" on {view['engine']} after {view['load_seconds']:.1f} s" if loaded else ""
        click.echo(f"{view['model']} is {view['state']}{took}")


@deployments.command("unload")
@click.argument("model")
@click.pass_obj
def unload(connect: Connect, model: str) -> None:
    """Unload MODEL after its requests in flight, and forget its options."""
    with connect() as bitmill:
        click.echo(f"{bitmill.undeploy(model)['freed_bytes'] / 1e6:,.0f} MB freed")


@deployments.command("show")
@click.argument("model")
@click.pass_obj
def show(connect: Connect, model: str) -> None:
    """One deployment, whole."""
    with connect() as bitmill:
        click.echo(json.dumps(bitmill.deployment(model), indent=2))


@click.group()
def engines() -> None:
    """List the engines, and install those that need an environment of their own."""


@engines.command("list")
@click.pass_obj
def list_engines(connect: Connect) -> None:
    """The serving host's engines and what they load."""
    with connect() as bitmill:
        Console().print(tables.engines(bitmill.engines()))


@engines.command("install")
@click.argument("name", type=click.Choice(["vllm"]))
@click.option("--cpu", is_flag=True, help="The build that needs no GPU.")
def install(name: str, cpu: bool) -> None:
    """Install an engine on this machine, into the engines folder."""
    command = [sys.executable, "-m", f"workers.serving.engines.{name}_install", *(["--cpu"] if cpu else [])]
    sys.exit(subprocess.run(command).returncode)
