"""The options of `bitmill quantize` that make a quality contract, and its proof as a table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from rich.table import Column, Table

from app.cli.tables import size

Json = dict[str, Any]
Command = TypeVar("Command", bound=Callable[..., Any])

UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


class Bytes(click.ParamType[int]):
    """A number of bytes, such as 100MB, 1.5GiB or 1000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = SIZE.fullmatch(str(value).strip())
        if match is None or match[2].upper() not in UNITS:
            self.fail(f"{value!r} is no size; give such as 100MB, 1.5GiB or 1000", param, ctx)
        return int(float(match[1]) * UNITS[match[2].upper()])


# Options by the names of the contract's terms.
OPTIONS: Final = (
    click.option("--max-kl", "max_kl_divergence", type=float, help="Mean KL divergence, in nats per token, at most."),
    click.option("--max-perplexity-ratio", type=float, help="Perplexity by the original's, at most."),
    click.option("--min-top1", "min_top1_agreement", type=float, help="Top-1 agreement at least, 0 to 1."),
    click.option("--max-memory", "max_memory_bytes", type=Bytes(), help="Memory while it is served, at most."),
    click.option("--max-size", "max_size_bytes", type=Bytes(), help="Size on disk at most, such as 100MB."),
    click.option(
        "--min-decode", "min_decode_tokens_per_second", type=float, help="Tokens per second at one request, at least."
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), help="Where the terms are measured."),
)


def contract_options(command: Command) -> Command:
    """Adds an option for each term."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def read_contract(options: dict[str, Any]) -> Json | None:
    """What was given of the terms; None for nothing."""
    return {name: value for name, value in options.items() if value is not None} or None


def tried(findings: Json) -> Table:
    """What a search made, what it measured, and what spoke against it."""
    table = Table(Column("candidate", overflow="fold"), "size", "KL divergence", "top-1", "contract")
    for entry in findings["tried"]:
        measured = entry["measured"]
        reason = "met" if entry["meets_contract"] else "; ".join(entry["broken_terms"])
        table.add_row(
            entry["label"],
            size(measured["size_bytes"]) if measured else "",
            _measured(measured.get("kl_divergence"), 4),
            _measured(measured.get("top1_agreement"), 3),
            entry["error"]["message"] if entry["error"] else reason,
        )
    for entry in findings["skipped"]:
        table.add_row(entry["label"], "", "", "", f"not made: {entry['reason']}")
    return table


def _measured(value: Json | None, digits: int) -> str:
    return f"{value['value']:.{digits}f} ± {value['standard_error']:.{digits}f}" if value else ""
