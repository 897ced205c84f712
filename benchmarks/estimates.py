"""How far estimates are from what was made: `python benchmarks/estimates.py [--quick]`.

Asks a running server (BITMILL_URL, else http://127.0.0.1:8000) for an estimate of each of its quantized models, and
compares weights with the artifact's and memory with what an evaluation measured. The models have to be there already.
With --quick only the first three are compared.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from app.client import BitmillClient, RequestFailed


def compare(client: BitmillClient, model: dict[str, Any]) -> dict[str, Any]:
    """One row: actual figures and the ratios predicted / actual."""
    known = model["bitmill"]
    serving = (known["evaluation"] or {}).get("serving")
    context = {"context_length": serving["context_length"], "concurrency": 8} if serving else {}
    predicted = client.estimate(known["source"], known["method"], **context)
    actual = known["bits_per_weight"] * known["parameter_count"] / 8
    resident = serving["gpu_bytes"] or serving["resident_bytes"] if serving else None
    return {
        "model": model["id"],
        "weights_bytes": int(actual),
        "weights_ratio": predicted["weights_bytes"] / actual,
        "memory_bytes": resident,
        "memory_ratio": predicted["memory"]["total_bytes"] / resident if resident else None,
        "job_seconds_ratio": predicted["job"]["seconds"] / known["seconds"],
    }


def main(quick: bool) -> None:
    rows = []
    with BitmillClient(os.environ.get("BITMILL_URL", "http://127.0.0.1:8000")) as client:
        made = [model for model in client.models() if model["bitmill"].get("method")]
        print(f"{'model':60} {'weights':>10} {'memory':>10} {'seconds':>10}   (predicted / actual)")
        for model in made[:3] if quick else made:
            try:
                row = compare(client, model)
            except RequestFailed as error:
                print(f"{model['id']:60} {error}")
                continue
            rows.append(row)
            memory = f"{row['memory_ratio']:.3f}" if row["memory_ratio"] else "unmeasured"
            print(f"{row['model']:60} {row['weights_ratio']:10.3f} {memory:>10} {row['job_seconds_ratio']:10.2f}")
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
