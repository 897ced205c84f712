"""`bitmill demo`: the whole path on a real, small model, through the public API alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from app.cli import launch, tables
from app.cli.progress import follow_job
from app.client import BitmillClient
from app.settings import get_settings

Json = dict[str, Any]

MODEL: Final = "demo/smollm2-135m-instruct"
METHODS: Final[tuple[Json, ...]] = (
    {"type": "gguf", "quantization": "Q4_K_M"},
    {"type": "bitsandbytes", "quantization": "nf4"},
)
QUESTION: Final = "What is the capital of France?"


def run(data: Path | None) -> int:
    """Returns the exit code: 0 when every job succeeded and every model answered."""
    console = Console()
    settings = get_settings().model_copy(update={"data_dir": data} if data else {})
    port = launch.free_port()
    url = f"http://127.0.0.1:{port}"
    key = settings.api_keys[0] if settings.api_keys else None
    stop = launch.StopSignal()
    console.print(f"Starting Bitmill on {url} (data in {settings.data_folder})")
    with launch.running_fleet(settings, "127.0.0.1", port, workers=1) as fleet:
        if not launch.wait_until_ready(fleet, url, key=key, stop=stop):
            raise click.ClickException(f"Bitmill did not start; see {settings.logs_folder}")
        with BitmillClient(url, key) as client:
            finished = [_quantize(client, method, console) for method in METHODS]
            console.print(_results(client, finished))
        _ask(url, key, [job["quantized_model"] for job in finished], console)
        console.print("Stopping Bitmill")
    console.print("Run `make run` to keep it running; the models stay in the data folder.")
    return 0


def _quantize(client: BitmillClient, method: Json, console: Console) -> Json:
    submitted = client.submit(MODEL, method)
    job = follow_job(client, submitted["id"], console, title=f"{method['type']} {method['quantization']}")
    if job["status"] != "succeeded":
        reason = job["error"]["message"] if job["error"] else job["status"]
        raise click.ClickException(f"{tables.method(job)}: {reason}")
    return job


def _results(client: BitmillClient, finished: list[Json]) -> Table:
    """One row for the original and one per result, with standard errors."""
    table = Table("model", "size", "bits/weight", "perplexity", "KL divergence", "top-1 agreement", "seconds")
    original = client.model(MODEL)["bitmill"]
    quality = finished[0]["quality"]
    table.add_row(
        "the original", tables.size(original["size_bytes"]), f"{original['bits_per_weight']:.2f}",
        _plus_minus(quality["reference_perplexity"], 2), "", "", "",
    )  # fmt: skip
    for job in finished:
        details = client.model(job["quantized_model"])["bitmill"]
        table.add_row(job["quantized_model"].removeprefix(f"{MODEL}:"), *_figures(details))
    return table


def _figures(details: Json) -> list[str]:
    quality = details["quality"]
    return [
        tables.size(details["size_bytes"]),
        f"{details['bits_per_weight']:.2f}",
        _plus_minus(quality["perplexity"], 2),
        _plus_minus(quality["kl_divergence"], 4),
        f"{quality['top1_agreement']['value']:.1%}",
        f"{details['seconds']:.0f}",
    ]


def _plus_minus(measurement: Json, digits: int) -> str:
    return f"{measurement['value']:.{digits}f} ± {measurement['standard_error']:.{digits}f}"


def _ask(url: str, key: str | None, models: list[str], console: Console) -> None:
    """Puts the question through OpenAI's own client, as any program would."""
    from openai import OpenAI

    console.print(f"\n[bold]{QUESTION}")
    with OpenAI(base_url=f"{url}/v1", api_key=key or "none") as client:
        for model in models:
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=40, temperature=0
            )
            console.print(f"{model.removeprefix(f'{MODEL}:')}: {answer.choices[0].message.content}")
    console.print()
