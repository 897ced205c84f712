"""Peak memory and throughput of the methods that need no data, on a generated llama of 1.5 B and one of 0.4 B.

`python benchmarks/streaming.py [--quick]`. Beside each: a plain copy of the same files, and for bitsandbytes and the
casts transformers' own way to the same result. Memory must not grow with the model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measured import BITMILL, run_measured

from tests.fakes.checkpoints import tiny_tokenizer
from workers.quantization.checkpoints.writer import CheckpointWriter, header_bound

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYERS = {"1.5B": 31, "0.4B": 7}
SHARD_BYTES = 700 * 1024**2
LIMIT_BYTES = 1.5 * 1024**3

METHODS: dict[str, dict[str, Any]] = {
    "none fp16": {"type": "none", "dtype": "fp16"},
    "bitsandbytes int8": {"type": "bitsandbytes", "quantization": "int8"},
    "bitsandbytes nf4 double": {"type": "bitsandbytes", "quantization": "nf4", "double_quant": True},
    "fp8": {"type": "fp8"},
    "fp8 e5m2": {"type": "fp8", "format": "e5m2", "activations": "none"},
    "int8 rtn": {"type": "int8"},
    "int4 rtn": {"type": "int4"},
    "nvfp4": {"type": "fp4", "format": "nvfp4"},
    "mxfp4": {"type": "fp4", "format": "mxfp4"},
    "gguf F16": {"type": "gguf", "quantization": "F16"},
    "gguf Q8_0": {"type": "gguf", "quantization": "Q8_0"},
    "gguf Q4_K_M": {"type": "gguf", "quantization": "Q4_K_M", "importance_matrix": "none"},
}
QUICK = ("none fp16", "bitsandbytes nf4 double", "fp8", "gguf Q4_K_M")

TRANSFORMERS = """
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
config = BitsAndBytesConfig(**arguments["config"]) if arguments["config"] else None
started = time.perf_counter()
model = AutoModelForCausalLM.from_pretrained(
    arguments["source"], dtype=getattr(torch, arguments["dtype"]), quantization_config=config, device_map="cpu"
)
model.save_pretrained(arguments["target"])
"""
PEERS: dict[str, dict[str, Any]] = {
    "none fp16": {"config": None, "dtype": "float16"},
    "bitsandbytes int8": {"config": {"load_in_8bit": True}, "dtype": "bfloat16"},
    "bitsandbytes nf4 double": {
        "config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "dtype": "bfloat16",
    },
}


def generate(folder: Path, layers: int) -> int:
    """Writes a random checkpoint in several shards, one tensor at a time. Returns its parameters' number."""
    folder.mkdir()
    config = CONFIG | {"num_hidden_layers": layers}
    shapes = dict(tensor_shapes(config))
    generator = torch.Generator().manual_seed(0)
    with CheckpointWriter(folder, max_shard_bytes=SHARD_BYTES, header_bytes=header_bound(list(shapes))) as writer:
        for name, shape in shapes.items():
            writer.write(name, (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16))
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save_pretrained(folder)
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def tensor_shapes(config: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (config["vocab_size"], hidden))]
    for number in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{number}"
        matrices = {"q_proj": (hidden, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
        matrices |= {"o_proj": (hidden, hidden)}
        shapes += [(f"{prefix}.self_attn.{name}.weight", shape) for name, shape in matrices.items()]
        shapes += [(f"{prefix}.mlp.{name}.weight", (wide, hidden)) for name in ("gate_proj", "up_proj")]
        shapes += [(f"{prefix}.mlp.down_proj.weight", (hidden, wide))]
        shapes += [(f"{prefix}.{name}.weight", (hidden,)) for name in ("input_layernorm", "post_attention_layernorm")]
    return [*shapes, ("model.norm.weight", (hidden,)), ("lm_head.weight", (config["vocab_size"], hidden))]


def copy_speed(source: Path, target: Path) -> float:
    """Megabytes per second of a plain copy."""
    started = time.perf_counter()
    shutil.copytree(source, target)
    speed = megabytes(source) / (time.perf_counter() - started)
    shutil.rmtree(target)
    return speed


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def measure(
    name: str, source: Path, work: Path, parameters: int, code: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    target, stages = work / "target", work / "stages"
    given = arguments | {"source": str(source), "target": str(target), "stages": str(stages)}
    copied = copy_speed(source, work / "copy")
    measured = run_measured(code, given | {"max_shard_bytes": SHARD_BYTES})
    for folder in (target, stages):
        shutil.rmtree(folder, ignore_errors=True)
    row = {
        "method": name,
        "data_free": True,
        "parameters": parameters,
        "peak_rss_bytes": int(measured["peak_rss_bytes"]),
        "megabytes_per_second": megabytes(source) / measured["seconds"],
        "copy_megabytes_per_second": copied,
    }
    print(
        f"{name:36} {parameters / 1e9:4.1f} B  peak {row['peak_rss_bytes'] / 1024**2:6.0f} MiB  "
        f"{row['megabytes_per_second']:7.1f} MB/s  copy {copied:7.1f} MB/s",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four methods instead of all")
    names = QUICK if parser.parse_args().quick else tuple(METHODS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for size, layers in LAYERS.items():
            source = work / size
            parameters = generate(source, layers)
            for name in names:
                rows.append(measure(name, source, work, parameters, BITMILL, {"method": METHODS[name]}))
                if name in PEERS:
                    peer = f"transformers, {name}"
                    rows.append(measure(peer, source, work, parameters, TRANSFORMERS, PEERS[name]))
            shutil.rmtree(source)
    ours = [row for row in rows if not row["method"].startswith("transformers")]
    print(f"the largest peak is {max(row['peak_rss_bytes'] for row in ours) / LIMIT_BYTES:.2f} of 1.5 GiB")
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
