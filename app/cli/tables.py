"""Answers of the API as tables for a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.table import Column, Table

Json = dict[str, Any]


def jobs(rows: list[Json]) -> Table:
    # An id is there to be copied; everything else of a job, `bitmill jobs show` shows.
    folded = [Column(name, overflow="fold") for name in ("model", "method")]
    table = Table(Column("id", no_wrap=True), "status", *folded, "progress", "created", "error")
    for job in rows:
        progress = f"{job['progress']['fraction']:.0%}"
        error = (job["error"] or {}).get("code", "")
        made = (job["quantized_model"] or "").removeprefix(job["model"])
        table.add_row(
            job["id"], job["status"], job["model"], made.removeprefix(":") or job["method"]["type"], progress,
            moment(job["created_at"]), error,
        )  # fmt: skip
    return table


def method(job: Json) -> str:
    values = dict(job["method"])
    name = values.pop("type")
    shown = [f"{key}={value}" for key, value in values.items()]
    return " ".join([name, *shown])


def methods(rows: list[Json]) -> Table:
    table = Table("method", "what it does", "writes", "devices", "parameters", "available")
    for row in rows:
        parameters = ", ".join(row["parameters"].get("properties", {}))
        available = "yes" if row["available"] else f"no: {row['unavailable_reason']}"
        table.add_row(row["id"], row["summary"], row["output"], ", ".join(row["devices"]), parameters, available)
    return table


def models(rows: list[Json]) -> Table:
    table = Table(Column("model", overflow="fold"), "format", "size", "bits per weight", "perplexity", "KL divergence")
    for row in rows:
        details = row["bitmill"]
        table.add_row(
            row["id"], details["format"], size(details["size_bytes"]), f"{details['bits_per_weight']:.2f}",
            measurement(details["quality"], "perplexity", 2),
            measurement(details["quality"], "kl_divergence", 4),
        )  # fmt: skip
    return table


def deployments(rows: list[Json]) -> Table:
    named = Column("model", overflow="fold")
    table = Table(named, "state", "engine", "memory", "slots in use", "requests", "last used", "pinned")
    for row in rows:
        resident = row.get("memory", {}).get("resident_bytes")
        used = row.get("last_used_at")
        table.add_row(
            row["model"], row["state"], row["engine"] or "", size(resident) if resident else "",
            f"{row['slots_in_use']} of {row['slots']}" if row["pid"] else "", str(row["requests"]),
            moment(used) if used else "", "yes" if row["pinned"] else "",
        )  # fmt: skip
    return table


def engines(rows: list[Json]) -> Table:
    table = Table("engine", "version", "loads", "devices", "available")
    for row in rows:
        available = "yes" if row["available"] else f"no: {row['problem']}"
        table.add_row(row["id"], row["version"] or "", ", ".join(row["formats"]), ", ".join(row["devices"]), available)
    return table


def files(rows: list[Json]) -> Table:
    table = Table(Column("id", no_wrap=True), "file", "purpose", "size", "uploaded")  # an id is there to be copied
    for row in rows:
        table.add_row(row["id"], row["filename"], row["purpose"], size(row["bytes"]), moment(row["created_at"]))
    return table


def workers(rows: list[Json]) -> Table:
    table = Table("worker", "queues", "processor", "memory", "GPUs", "works on")
    for row in rows:
        hardware = row["hardware"]
        gpus = ", ".join(gpu["name"] for gpu in hardware["gpus"]) or "none"
        processor = f"{hardware['cores']} × {hardware['processor']}"
        table.add_row(
            row["id"], ", ".join(row["queues"]), processor, size(hardware["memory_bytes"]), gpus,
            row["current_job"] or "nothing",
        )  # fmt: skip
    return table


def evaluation(result: Json) -> Table:
    """One measured figure per row, with its standard error or what it is of."""
    table = Table("measured", Column("value", justify="right"), "")
    for name, value, note in [
        *_quality_rows(result["quality"]), *_serving_rows(result["serving"]), *_task_rows(result.get("tasks")),
    ]:  # fmt: skip
        table.add_row(name, value, note)
    return table


def training(job: Json) -> Table:
    """What a training came to, as it was measured when its result had been loaded back."""
    proof, result = job["bitmill"]["result"]["proof"], job["bitmill"]["result"]
    table = Table("measured", Column("value", justify="right"), Column("before", justify="right"))
    table.add_row(f"loss on {proof['tokens']} tokens", f"{proof['loss']:.3f}", f"{proof['base_loss']:.3f}")
    table.add_row("token accuracy", f"{proof['accuracy']:.1%}", f"{proof['base_accuracy']:.1%}")
    table.add_row("steps", str(result["steps"]), "")
    table.add_row("tokens trained on", f"{job['trained_tokens']:,}", "")
    table.add_row("answer", proof["generated_text"][:60], proof["base_text"][:60])
    return table


def recommendation(answer: Json) -> Table:
    table = Table("method", "weights", "memory", "fits", "rests on")
    fits = {True: "yes", False: "no", None: "unknown"}
    for row in answer["data"]:
        method = row["method"]
        shown = [str(method[name]) for name in ("type", "quantization", "bits", "format", "dtype") if name in method]
        table.add_row(
            " ".join(shown), size(row["weights_bytes"]), size(row["memory_bytes"]), fits[row["fits"]],
            "\n".join(part for part in (row["basis"], *row["broken_terms"], row["caution"]) if part),
        )  # fmt: skip
    return table


def comparison(answer: Json) -> Table:
    """What was measured, narrow enough for 80 columns; the reports have all of it."""
    right = [Column(name, justify="right", no_wrap=True) for name in ("bits", "size", "memory", "KL (nats)", "top-1")]
    table = Table(
        Column("method", overflow="fold"), *right, Column("tokens/s", justify="right", no_wrap=True),
        caption="tokens/s: at 1 and at 8 requests at a time; *: on the Pareto front of size, speed and KL divergence",
    )  # fmt: skip
    for row in answer["rows"]:
        if not row["error"]:
            table.add_row(*_compared(row))
    return table


def _compared(row: Json) -> list[str]:
    rates = [row["decode_tokens_per_second"].get(count) for count in ("1", "8")]
    memory = row["gpu_bytes"] or row["resident_bytes"]
    return [
        row["label"] + (" *" if row["on_pareto_front"]["size_speed_and_kl_divergence"] else ""),
        f"{row['bits_per_weight']:.1f}" if row["bits_per_weight"] else "",
        size(row["size_bytes"]) if row["size_bytes"] else "",
        size(memory) if memory else "",
        _with_error(row["kl_divergence"], 4),
        f"{row['top1_agreement']['value']:.3f}" if row["top1_agreement"] else "",
        ", ".join("–" if rate is None else f"{rate:.0f}" for rate in rates),
    ]


def comparisons(rows: list[Json]) -> Table:
    table = Table(
        Column("id", no_wrap=True), "status", Column("model", overflow="fold"), "methods", "progress", "created"
    )
    for row in rows:
        progress = f"{row['progress']['fraction']:.0%}"
        methods = str(len(row["rows"]) - 1)  # the original is no method
        table.add_row(row["id"], row["status"], row["model"], methods, progress, moment(row["created_at"]))
    return table


def _with_error(value: Json | None, digits: int) -> str:
    """Without spaces, so that a narrow terminal does not break it."""
    return f"{value['value']:.{digits}f}±{value['standard_error']:.{digits}f}" if value else ""


def _quality_rows(quality: Json | None) -> list[tuple[str, str, str]]:
    if quality is None:
        return []
    rows: list[tuple[str, str, str] | None] = [
        _row("perplexity", quality["perplexity"]),
        _row("original's perplexity", quality["reference_perplexity"]),
    ]
    if divergence := quality["kl_divergence"]:
        rows.append(_row("KL divergence, mean", divergence["mean"], "nats per token"))
        rows += [(f"KL divergence, {name}", f"{divergence[name]:.4f}", "") for name in ("median", "p99", "maximum")]
    rows.append(_row("top-1 agreement", quality["top1_agreement"]))
    scored = (f"{quality['scored_tokens']}", f"of {quality['dataset']}, windows of {quality['context_length']}")
    return [*(row for row in rows if row), ("scored tokens", *scored)]


def _row(name: str, value: Json | None, note: str = "") -> tuple[str, str, str] | None:
    return (name, f"{value['value']:.4f}", f"± {value['standard_error']:.4f} {note}".rstrip()) if value else None


def _task_rows(tasks: Json | None) -> list[tuple[str, str, str]]:
    rows = []
    for task, figures in (tasks or {}).items():
        for name, metric in figures["metrics"].items():
            error = f"± {metric['standard_error']:.4f}, " if metric["standard_error"] is not None else ""
            rows.append((f"{task}: {name}", f"{metric['value']:.4f}", f"{error}{figures['documents']} documents"))
    return rows


def _serving_rows(serving: Json | None) -> list[tuple[str, str, str]]:
    if serving is None:
        return []
    rows = [("load", f"{serving['load_seconds']:.1f} s", f"on {serving['engine']}, {serving['device']}")]
    predicted = f"{size(serving['predicted_bytes'])} predicted"
    rows += [("resident memory", size(serving["resident_bytes"]), predicted)] if serving["resident_bytes"] else []
    rows += [("GPU memory", size(serving["gpu_bytes"]), "")] if serving["gpu_bytes"] else []
    for speed in serving["speed"]:
        note = f"{speed['requests']} at a time"
        rows.append(("time to first token", f"{speed['time_to_first_token_seconds']:.2f} s", note))
        for phase in ("prefill", "decode"):
            rate = speed[f"{phase}_tokens_per_second"]
            rows += [(phase, f"{rate:.0f} tokens/s", note)] if rate else []
    return rows


def measurement(quality: Json | None, name: str, digits: int) -> str:
    return f"{quality[name]['value']:.{digits}f}" if quality else ""


def size(count: int) -> str:
    """Bytes in powers of ten, as disks are sold."""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
