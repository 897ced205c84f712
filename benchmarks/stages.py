"""Eight GGUF types of the demo model: together, sharing their stages, beside eight runs that share nothing.

`python benchmarks/stages.py [--quick]`. Sharing should take at most half the time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from measured import BITMILL, run_measured

from app.settings import Settings
from workers.sources.resolve import resolve

MODEL = "demo/smollm2-135m-instruct"
TYPES = ("Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q2_K")


def seconds(source: Path, work: Path, types: tuple[str, ...], *, shared: bool) -> float:
    total = 0.0
    for name in types:
        folder = work / ("shared" if shared else f"alone-{name}")
        arguments: dict[str, Any] = {
            "source": str(source),
            "target": str(folder / f"target-{name}"),
            "stages": str(folder / "stages"),
            "max_shard_bytes": 10**10,
            "method": {"type": "gguf", "quantization": name},
        }
        took = run_measured(BITMILL, arguments)["seconds"]
        print(f"{'shared' if shared else 'alone':7} {name:7} {took:6.1f} s", flush=True)
        total += took
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three types instead of eight")
    types = TYPES[:3] if parser.parse_args().quick else TYPES
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = resolve(MODEL, Settings(data_dir=work / "data"), lambda fraction, stage: None)
        alone = seconds(source.path, work, types, shared=False)
        shared = seconds(source.path, work, types, shared=True)
    row = {"types": len(types), "shared_seconds": shared, "separate_seconds": alone, "ratio": shared / alone}
    print("{types} types: {shared_seconds:.1f} s together, {separate_seconds:.1f} s apart: {ratio:.2f}".format(**row))
    print(json.dumps({"rows": [row]}))


if __name__ == "__main__":
    main()
