"""The columns of a comparison's table: one list for the pages, one with plain numbers for CSV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

Json = dict[str, Any]
Cell = Callable[[Json], str]

NOTHING: Final = "–"


def megabytes(value: float | None) -> str:
    return NOTHING if value is None else f"{value / 1e6:,.0f}"


def _measured(name: str, digits: int) -> Cell:
    def cell(row: Json) -> str:
        value = row[name]
        return NOTHING if value is None else f"{value['value']:.{digits}f} ± {value['standard_error']:.{digits}f}"

    return cell


def _at(name: str, requests: int, digits: int) -> Cell:
    def cell(row: Json) -> str:
        value = row[name].get(str(requests))
        return NOTHING if value is None else f"{value:.{digits}f}"

    return cell


def _bits(row: Json) -> str:
    return NOTHING if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.2f}"


def _memory(row: Json) -> str:
    return megabytes(memory_bytes(row))


def memory_bytes(row: Json) -> int | None:
    """On the GPU where the engine uses one, else resident."""
    found: int | None = row["gpu_bytes"] or row["resident_bytes"]
    return found


def _front(row: Json) -> str:
    flag = row["on_pareto_front"]["size_speed_and_kl_divergence"]
    return NOTHING if flag is None else "yes" if flag else "no"


# Head with its unit, and what stands below it.
COLUMNS: Final[tuple[tuple[str, Cell], ...]] = (
    ("method", lambda row: row["label"]),
    ("bits per weight", _bits),
    ("size (MB)", lambda row: megabytes(row["size_bytes"])),
    ("memory (MB)", _memory),
    ("perplexity", _measured("perplexity", 2)),
    ("KL divergence (nats)", _measured("kl_divergence", 4)),
    ("top-1 agreement", _measured("top1_agreement", 3)),
    ("decode, 1 request (tokens/s)", _at("decode_tokens_per_second", 1, 0)),
    ("decode, 8 requests (tokens/s)", _at("decode_tokens_per_second", 8, 0)),
    ("first token (s)", _at("time_to_first_token_seconds", 1, 2)),
    ("Pareto front", _front),
)


def _part(name: str, key: str) -> Callable[[Json], Any]:
    return lambda row: row[name][key] if row[name] else None


def _of(name: str, requests: int) -> Callable[[Json], Any]:
    return lambda row: row[name].get(str(requests))


def _plain(name: str) -> Callable[[Json], Any]:
    return lambda row: row[name]


PLAIN: Final = (
    "label", "status", "model", "engine", "bits_per_weight", "size_bytes", "resident_bytes", "gpu_bytes",
    "load_seconds",
)  # fmt: skip
# As numbers, with units in the names.
PLAIN_COLUMNS: Final[dict[str, Callable[[Json], Any]]] = {
    **{name: _plain(name) for name in PLAIN},
    **{
        f"{name}{ending}": _part(name, key)
        for name in ("perplexity", "kl_divergence", "top1_agreement")
        for ending, key in (("", "value"), ("_standard_error", "standard_error"))
    },
    "kl_divergence_p99": _plain("kl_divergence_p99"),
    **{f"decode_tokens_per_second_at_{count}": _of("decode_tokens_per_second", count) for count in (1, 8)},
    **{f"time_to_first_token_seconds_at_{count}": _of("time_to_first_token_seconds", count) for count in (1, 8)},
    **{
        f"on_front_of_{name}": _part("on_pareto_front", name)
        for name in ("size_and_kl_divergence", "speed_and_kl_divergence", "size_speed_and_kl_divergence")
    },
    "error": lambda row: row["error"]["message"] if row["error"] else None,
}


def measured_rows(comparison: Json) -> list[Json]:
    return [row for row in comparison["rows"] if not row["error"]]


def failed_rows(comparison: Json) -> list[Json]:
    return [row for row in comparison["rows"] if row["error"]]
