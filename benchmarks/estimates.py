"""How far estimates are from what was made, of the demo model and of a generated llama of 0.4 B.

`python benchmarks/estimates.py [--quick] [--data DIR]` quantizes both, loads each artifact on the engine that serves
it, and compares: weights with the artifact's, memory with the loaded process's after eight requests at a time. The
aims: weights within 2 %, memory within 15 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, Final

from running import MODEL, Bitmill, running_bitmill
from streaming import LAYERS, generate

METHODS: Final[tuple[dict[str, Any], ...]] = (
    {"type": "none", "dtype": "bf16"},
    {"type": "bitsandbytes", "quantization": "nf4"},
    {"type": "gguf", "quantization": "Q4_K_M", "importance_matrix": "none"},
    {"type": "none", "dtype": "fp16"},
    {"type": "bitsandbytes", "quantization": "int8"},
    {"type": "fp8"},
    {"type": "int8"},
    {"type": "int4", "group_size": 64},
    {"type": "gguf", "quantization": "Q8_0"},
)
QUICK: Final = 3
CONCURRENCY: Final = 8
AIMS: Final = {"weights_ratio": 0.02, "memory_ratio": 0.15}


def compare(bitmill: Bitmill, source: str, method: dict[str, Any]) -> dict[str, Any]:
    """One row: what was predicted, what came, and the ratios predicted / actual."""
    # A generated model says nothing that the gate would let pass.
    name = bitmill.quantize(method, source, gate="on" if source == MODEL else "off")
    measured = bitmill.finish(bitmill.client.evaluate(name, metrics=["memory"]))["result"]["serving"]
    made = bitmill.client.model(name)["bitmill"]
    predicted = bitmill.client.estimate(
        source, method, context_length=measured["context_length"], concurrency=CONCURRENCY
    )
    weights = made["bits_per_weight"] * made["parameter_count"] / 8
    memory = measured["gpu_bytes"] or measured["resident_bytes"]
    row = {
        "model": Path(source).name,
        "artifact": name.rpartition(":")[2],
        "engine": measured["engine"],
        "weights_bytes": int(weights),
        "weights_ratio": predicted["weights_bytes"] / weights,
        "memory_bytes": memory,
        "predicted_memory_bytes": predicted["memory"]["total_bytes"],
        "memory_ratio": predicted["memory"]["total_bytes"] / memory,
    }
    print(
        f"{row['model']:24} {row['artifact']:16} {row['engine']:13} weights {weights / 1e6:6.0f} MB "
        f"{row['weights_ratio']:6.3f}  memory {memory / 1e6:6.0f} MB {row['memory_ratio']:6.3f}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} methods instead of {len(METHODS)}")
    parser.add_argument("--data", type=Path, help="a data folder to keep; artifacts in it are used again")
    given = parser.parse_args()
    with running_bitmill(given.data) as bitmill:
        generated = bitmill.settings.data_folder / "models" / "llama-0.4b"
        if not generated.exists():
            generated.parent.mkdir(exist_ok=True)
            generate(generated, LAYERS["0.4B"])
        sources = (MODEL, str(generated))
        methods = METHODS[: QUICK if given.quick else None]
        rows = [compare(bitmill, source, method) for source in sources for method in methods]
    for ratio, aim in AIMS.items():
        errors = [abs(row[ratio] - 1) for row in rows]
        within = sum(error <= aim for error in errors)
        print(
            f"{ratio.partition('_')[0]}: median error {statistics.median(errors):.1%}, largest {max(errors):.1%}, "
            f"within {aim:.0%}: {within} of {len(rows)}"
        )
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
