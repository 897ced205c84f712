"""Seconds and peak memory of methods on the demo model, beside the bare library doing the same work.

`python benchmarks/quantize.py [--quick] [--method NAME …]`. Each runs in a fresh process; imports are not counted. The
aim: at most 1.05 times the library's seconds, plus 3.
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
CALIBRATION = {"samples": 16, "sequence_length": 256}

TRANSFORMERS = """
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
config = BitsAndBytesConfig(**arguments["config"]) if arguments.get("config") else None
started = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(
    arguments["source"], dtype=getattr(torch, arguments["dtype"]), quantization_config=config, device_map="cpu"
)
model.save_pretrained(arguments["target"])
"""

# The conversion to GGUF, which the library has no function for, is ours in both.
LLAMA_CPP = """
import ctypes
from pathlib import Path
from llama_cpp import llama_cpp
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.run import RecordingRun
from workers.quantization.gguf.converter import convert
source = inspect_checkpoint(Path(arguments["source"]))
target = Path(arguments["target"])
target.mkdir(parents=True)
started = time.perf_counter()
convert(source, target / "bf16.gguf", "BF16", RecordingRun(source, target / "stages"))
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + arguments["type"])
files = [str(target / name).encode() for name in ("bf16.gguf", "model.gguf")]
assert llama_cpp.llama_model_quantize(*files, ctypes.byref(params)) == 0
"""

GPTQMODEL = """
import os
os.environ["GPTQMODEL_CPU_WORKERS"] = str(os.cpu_count())
from pathlib import Path
import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization.config import AWQConfig, GPTQConfig
from app.domain.quantization.calibration import CalibrationParams
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.run import RecordingRun
source = inspect_checkpoint(Path(arguments["source"]))
run = RecordingRun(source, Path(arguments["target"] + "-stages"))
windows = run.calibration(CalibrationParams(**arguments["calibration"]), run.report).windows
started = time.perf_counter()
rows = [{"input_ids": torch.from_numpy(row)[None], "attention_mask": torch.ones(1, len(row))} for row in windows]
config = {"gptq": GPTQConfig, "awq": AWQConfig}[arguments["kind"]]
awq = arguments["kind"] == "awq"
folders = {"offload_to_disk_path": arguments["target"] + "-off"}
options = config(bits=4, group_size=64, sym=not awq, pack_impl="original", **folders)
model = GPTQModel.load(arguments["source"], options, device="cpu", dtype=torch.bfloat16)
model.quantize(rows, batch_size=4, backend=BACKEND.AWQ_TORCH if awq else BACKEND.AUTO)
model.save(arguments["target"])
"""

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
# Method, the peer's code, and what the peer is given.
PAIRS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "none fp16": ({"type": "none", "dtype": "fp16"}, TRANSFORMERS, {"dtype": "float16"}),
    "bitsandbytes int8": (
        {"type": "bitsandbytes", "quantization": "int8"},
        TRANSFORMERS,
        {"dtype": "bfloat16", "config": {"load_in_8bit": True}},
    ),
    "bitsandbytes nf4": ({"type": "bitsandbytes"}, TRANSFORMERS, {"dtype": "bfloat16", "config": NF4}),
    "gguf Q4_K_M": (
        {"type": "gguf", "quantization": "Q4_K_M", "importance_matrix": "none"},
        LLAMA_CPP,
        {"type": "Q4_K_M"},
    ),
    "gptq": (
        {"type": "gptq", "group_size": 64, "calibration": CALIBRATION},
        GPTQMODEL,
        {"kind": "gptq", "calibration": CALIBRATION},
    ),
    "awq": (
        {"type": "awq", "group_size": 64, "calibration": CALIBRATION},
        GPTQMODEL,
        {"kind": "awq", "calibration": CALIBRATION},
    ),
}
QUICK = ("none fp16", "bitsandbytes nf4", "gguf Q4_K_M")


def compare(name: str, source: Path, work: Path) -> dict[str, Any]:
    method, code, given = PAIRS[name]
    shared = {"source": str(source), "stages": str(work / f"{name}-stages"), "max_shard_bytes": 10**10}
    ours = run_measured(BITMILL, {**shared, "target": str(work / f"{name}-ours"), "method": method})
    theirs = run_measured(code, {**shared, "target": str(work / f"{name}-theirs"), **given})
    row = {
        "method": name,
        "seconds": ours["seconds"],
        "library_seconds": theirs["seconds"],
        "ratio": ours["seconds"] / theirs["seconds"],
        "within_goal": ours["seconds"] <= 1.05 * theirs["seconds"] + 3,
        "peak_rss_bytes": ours["peak_rss_bytes"],
        "library_peak_rss_bytes": theirs["peak_rss_bytes"],
    }
    print(
        f"{name:20} {row['seconds']:7.1f} s  library {row['library_seconds']:7.1f} s  ratio {row['ratio']:5.2f}  "
        f"peak {row['peak_rss_bytes'] / 1024**2:5.0f} MiB  library {row['library_peak_rss_bytes'] / 1024**2:5.0f} MiB",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the methods that take minutes")
    parser.add_argument("--method", action="append", choices=PAIRS, help="only this one; may be repeated")
    given = parser.parse_args()
    names = given.method or (QUICK if given.quick else tuple(PAIRS))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = resolve(MODEL, Settings(data_dir=work / "data"), lambda fraction, stage: None)
        rows = [compare(name, source.path, work) for name in names]
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
