"""Every method on the demo model through a running Bitmill: the README's table.

`python benchmarks/methods.py [--quick] [--data DIR]`. Quality is relative to the demo model, whose weights had four
bits before it was unpacked; its rows of 576 weights also make llama.cpp fall back to larger types than asked for.
Seconds include the proof. Extras that are not installed are left out. The ratios are to the bfloat16 cast beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from running import MODEL, Bitmill, running_bitmill

METHODS: list[dict[str, Any]] = [
    {"type": "none", "dtype": "bf16"},
    {"type": "none", "dtype": "fp16"},
    {"type": "bitsandbytes", "quantization": "int8"},
    {"type": "bitsandbytes", "quantization": "nf4"},
    {"type": "bitsandbytes", "quantization": "nf4", "double_quant": True},
    {"type": "bitsandbytes", "quantization": "fp4"},
    {"type": "fp8"},
    {"type": "fp8", "format": "e5m2", "activations": "none"},
    {"type": "int8"},
    {"type": "int8", "smoothing": 0.5, "algorithm": "gptq"},
    {"type": "int4", "group_size": 64},
    {"type": "int4", "group_size": 64, "algorithm": "gptq"},
    {"type": "fp4", "format": "nvfp4"},
    {"type": "fp4", "format": "mxfp4"},
    {"type": "gptq", "bits": 4, "group_size": 64},
    {"type": "awq", "group_size": 64},
    {"type": "qat", "group_size": 64},
    {"type": "hqq", "group_size": 64},
    {"type": "autoround", "group_size": 64},
    {"type": "gguf", "quantization": "Q8_0"},
    {"type": "gguf", "quantization": "Q5_K_M"},
    {"type": "gguf", "quantization": "Q4_K_M"},
    {"type": "gguf", "quantization": "IQ4_XS"},
    {"type": "gguf", "quantization": "Q3_K_M"},
]
# The first job of a model unpacks it too, and measures the original.
IMPORT = {"type": "none", "dtype": "fp32"}
SLOW = ("gptq", "awq", "qat", "autoround")


def details_of(bitmill: Bitmill, method: dict[str, Any]) -> dict[str, Any]:
    """The artifact, made if need be. Raises RuntimeError with the job's reason."""
    name = bitmill.quantize(method)
    return {"name": name.removeprefix(f"{MODEL}:"), **bitmill.client.model(name)["bitmill"]}


def row_of(method: dict[str, Any], details: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    quality = details["quality"]
    return {
        "method": method["type"],
        "artifact": details["name"],
        "bits_per_weight": details["bits_per_weight"],
        "size_bytes": details["size_bytes"],
        "size_ratio": details["size_bytes"] / baseline["size_bytes"],
        "perplexity_ratio": quality["perplexity"]["value"] / quality["reference_perplexity"]["value"],
        "kl_divergence": quality["kl_divergence"]["value"],
        "kl_divergence_standard_error": quality["kl_divergence"]["standard_error"],
        "top1_agreement": quality["top1_agreement"]["value"],
        "seconds": details["seconds"],
        "peak_memory_bytes": details["peak_memory_bytes"],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | artifact | bits per weight | size | perplexity | KL divergence | top-1 | seconds | peak memory |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [
            f"`{row['method']}`",
            f"`{row['artifact']}`",
            f"{row['bits_per_weight']:.2f}",
            f"{row['size_bytes'] / 1e6:.0f} MB",
            f"×{row['perplexity_ratio']:.3f}",
            f"{row['kl_divergence']:.4f} ± {row['kl_divergence_standard_error']:.4f}",
            f"{row['top1_agreement']:.1%}",
            f"{row['seconds']:.0f}",
            f"{row['peak_memory_bytes'] / 1e6:,.0f} MB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the methods that take minutes")
    parser.add_argument("--data", type=Path, help="a data folder to keep; artifacts in it are used again")
    given = parser.parse_args()
    chosen = [method for method in METHODS if not (given.quick and method["type"] in SLOW)]
    rows: list[dict[str, Any]] = []
    with running_bitmill(given.data) as bitmill:
        there = {view["id"] for view in bitmill.client.methods() if view["available"]}
        chosen = [method for method in chosen if method["type"] in there]
        bitmill.quantize(IMPORT)
        baseline = details_of(bitmill, chosen[0])
        for method in chosen:
            rows.append(row_of(method, details_of(bitmill, method), baseline))
            print(markdown(rows[-1:]).splitlines()[-1], flush=True)
    print(markdown(rows))
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
