"""What the commands read from their command lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from app.cli.comparisons import read_method
from app.cli.contracts import Bytes
from app.cli.launch import api_command, serving_command
from app.cli.main import cli
from app.connections import CLIENTS_KEEP_SECONDS


@pytest.mark.parametrize(
    ("text", "count"),
    [("1000", 1000), ("100MB", 100_000_000), ("1.5GiB", 1_610_612_736), ("2 kb", 2000), ("7B", 7)],
)
def test_sizes_are_read_with_their_units(text: str, count: int) -> None:
    assert Bytes().convert(text, None, None) == count


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("awq", {"type": "awq"}),
        ("gguf,quantization=Q5_K_M", {"type": "gguf", "quantization": "Q5_K_M"}),
        ("gptq,bits=3,calibration.samples=64", {"type": "gptq", "bits": 3, "calibration": {"samples": 64}}),
    ],
)
def test_methods_are_read_with_their_parameters(text: str, method: dict[str, Any]) -> None:
    assert read_method(text) == method


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "tiny"], "--set or at least one --method"),
        (["compare", "tiny", "--set", "seed-table", "--method", "awq"], "--set or at least one --method"),
        (["compare", "tiny", "--method", "awq", "--report", "table.pdf"], "table.pdf"),
        (["compare", "tiny", "--method", "awq", "--no-wait", "--report", "a.html"], "--no-wait"),
        (["quantize", "tiny", "--max-size", "huge"], "'huge' is no size"),
    ],
)
def test_wrong_options_are_said_before_anything_is_asked(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


@pytest.mark.parametrize("command", [api_command, serving_command])
def test_servers_keep_connections_for_longer_than_clients(command: Callable[[str, int], list[str]]) -> None:
    given = command("127.0.0.1", 1)
    kept = int(given[given.index("--timeout-keep-alive") + 1])
    theirs = httpx.Limits().keepalive_expiry
    assert theirs is not None
    assert kept > max(theirs, CLIENTS_KEEP_SECONDS)
