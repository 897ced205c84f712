"""A Bitmill of the benchmark's own, and jobs that are followed to their end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import measured  # noqa: F401 -- puts the repository's root on the path

from app.cli.launch import Fleet, free_port, running_fleet, wait_until_ready
from app.client import BitmillClient
from app.settings import Settings

MODEL: Final = "demo/smollm2-135m-instruct"


@dataclass(frozen=True)
class Bitmill:
    settings: Settings
    url: str
    client: BitmillClient
    fleet: Fleet

    def finish(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job as it ended. Raises RuntimeError with its reason where it did not succeed."""
        for _ in self.client.follow(job["id"]):
            continue
        done = self.client.job(job["id"])
        if done["status"] != "succeeded":
            raise RuntimeError(f"{done['model']}: {done['error']}")
        return done

    def quantize(self, method: dict[str, Any], model: str = MODEL, *, gate: str = "on") -> str:
        """The finished artifact's name. Raises RuntimeError."""
        return str(self.finish(self.client.submit(model, method, gate=gate))["quantized_model"])


@contextmanager
def running_bitmill(data_dir: Path | None = None) -> Iterator[Bitmill]:
    """API, worker and serving host on a free port, with a data folder of their own unless one is given."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=(data_dir or Path(folder)).absolute())
        with running_fleet(settings, "127.0.0.1", port, 1) as fleet, BitmillClient(url) as client:
            assert wait_until_ready(fleet, url)
            yield Bitmill(settings, url, client, fleet)
