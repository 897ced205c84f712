"""`bitmill deployments` and what it asks of the API."""

from __future__ import annotations

from pathlib import Path
from threading import Timer

import httpx
import pytest
from click.testing import CliRunner

from app.cli.main import cli
from app.client import BitmillClient
from tests.unit.serving.conftest import MODEL
from tests.unit.serving.test_host import post, until
from workers.serving.pool import ModelPool


@pytest.fixture
def command(host_url: str, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("BITMILL_URL", host_url)
    return CliRunner()


def test_a_model_is_loaded_shown_and_unloaded(command: CliRunner) -> None:
    loaded = command.invoke(cli, ["deployments", "load", MODEL, "--slots", "3"])
    assert loaded.output.startswith(f"{MODEL} is ready on fake after ")
    assert '"slots": 3' in command.invoke(cli, ["deployments", "show", MODEL]).output
    assert "MB freed" in command.invoke(cli, ["deployments", "unload", MODEL]).output


def test_a_model_that_is_gone_again_was_loaded_all_the_same(
    command: CliRunner, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BitmillClient.deploy

    def deploy(self: BitmillClient, model: str, **options: object) -> dict[str, object]:
        real(self, model, **options)
        until(lambda: pool.view() == [])
        return self.deployment(model)

    monkeypatch.setattr(BitmillClient, "deploy", deploy)
    loaded = command.invoke(cli, ["deployments", "load", MODEL, "--keep-alive", "0"])
    assert (loaded.exit_code, loaded.output) == (0, f"{MODEL} is unloaded\n")


def test_unloading_takes_as_long_as_requests_do(host_url: str, tmp_path: Path, pool: ModelPool) -> None:
    """The client's usual patience is shorter than a host's that lets requests finish."""
    gate = tmp_path / "gate"
    with BitmillClient(host_url) as client:
        client._http.timeout = httpx.Timeout(0.2)
        client._request("POST", "/v1/deployments", json={"model": MODEL}, timeout=30)
        busy = Timer(0, post, (host_url,), {"user": str(gate)})
        busy.start()
        until(lambda: pool.view()[0]["slots_in_use"] == 1)
        Timer(0.6, gate.touch).start()
        assert client.undeploy(MODEL)["deleted"]
        busy.join()
