"""Whether other engines load what Bitmill writes, and say the same: vLLM's CPU build and llama.cpp's own tools.

`python benchmarks/interop.py [--quick] [--only METHOD …] [--environment FOLDER]` quantizes the demo model with
Bitmill's methods. vLLM runs in an environment of its own, which is made in FOLDER unless it is there. Agreement is the
share of the first 16 greedy tokens before the engine and transformers part, both given the same artifact and prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import httpx
from measured import BITMILL, run_measured

from app.cli.launch import free_port
from app.domain.hardware import Device
from app.domain.model_names import parse_model_name
from app.settings import Settings
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.fakes.installation import end
from workers.loading import load_causal_lm
from workers.serving.engines.vllm_install import CPU_BUILD, MARKER, install
from workers.sources.demo import import_demo

MODEL: Final = "demo/smollm2-135m-instruct"
QUESTION: Final = "What is the capital of France?"
TOKENS: Final = 16
LOAD_SECONDS: Final = 600
# The model's rows of 576 weights want groups of 64.
METHODS: Final[dict[str, dict[str, Any]]] = {
    "int8": {"type": "int8"},
    "gptq": {"type": "gptq", "group_size": 64},
    "awq": {"type": "awq", "group_size": 64},
    "fp8": {"type": "fp8"},
    "int4": {"type": "int4", "group_size": 64, "algorithm": "gptq"},
    # A few steps: what is looked at is the layout.
    "qat": {"type": "qat", "max_steps": 8},
    "qat-w4a8": {"type": "qat", "scheme": "int8-int4", "max_steps": 8},
}
CALIBRATED: Final = ("gptq", "awq", "int4")
GGUF: Final[dict[str, Any]] = {"type": "gguf", "quantization": "Q4_K_M"}


def quantize(source: Checkpoint, method: dict[str, Any], target: Path) -> None:
    """In a process of its own, as a job would be."""
    stages = target.parent / "stages"
    arguments = {"source": str(source.path), "target": str(target), "method": method, "stages": str(stages)}
    run_measured(BITMILL, {**arguments, "max_shard_bytes": 10**10})


def vllm_python(folder: Path) -> Path:
    """The interpreter of an environment with vLLM, which is made unless it is there."""
    if not (folder / MARKER).is_file():
        install(folder, Device.CPU)
    return folder / "bin" / "python"


@contextmanager
def vllm_server(python: Path, artifact: Path, log: Path) -> Iterator[httpx.Client]:
    """Yields a client of vLLM's server; raises RuntimeError with the log's last lines where it does not load."""
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", artifact, "--served-model-name", "m"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--max-model-len", "512", "--max-num-seqs", "2"]
    command.append("--enforce-eager")  # compiling takes longer than one answer saves
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    with log.open("w") as output, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            wait_until_loaded(client, process, log)
            yield client
        finally:
            end(process)


def wait_until_loaded(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)  # not listening yet
    errors = [line for line in log.read_text().splitlines() if "Error" in line]
    raise RuntimeError(errors[-1][-160:] if errors else "did not load in time")


def ask_vllm(python: Path, artifact: Path, prompt: list[int], log: Path) -> list[int]:
    """The ids of the first greedy tokens."""
    request = {"model": "m", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    with vllm_server(python, artifact, log) as client:
        answer = client.post("/v1/completions", json=request)
        answer.raise_for_status()
        ids: list[int] = answer.json()["choices"][0]["token_ids"]
        return ids


def load_gguf(file: Path) -> Any:
    """The model in 32 bits from what a GGUF file stores, by transformers' own reader."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    config = GgufConfig(gguf_file=file.name, dequantize=True)
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=config, dtype=torch.float32
    )


def ask_transformers(model: Any, prompt: list[int], stop: int) -> list[int]:
    import torch

    ids = torch.tensor([prompt])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=stop
    )
    generated: list[int] = made[0, len(prompt) :].tolist()
    return generated


def ask_llama_cpp(file: Path, prompt: list[int], stop: int) -> list[int]:
    """Through the high-level API of llama-cpp-python."""
    from llama_cpp import Llama

    model = Llama(str(file), n_ctx=512, n_threads=1, verbose=False)
    made: list[int] = []
    for token in model.generate(prompt, temp=0.0):
        made.append(token)
        if token == stop or len(made) == TOKENS:
            break
    return made


def dump_gguf(file: Path) -> str:
    """What gguf-py's own reader finds in a file: how many tensors of which type."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    types = [tensor.tensor_type.name for tensor in reader.tensors]
    return ", ".join(f"{types.count(name)} {name}" for name in sorted(set(types)))


def agreement(left: list[int], right: list[int]) -> float:
    """The share of tokens before the two first part."""
    longest = max(len(left), len(right))
    same = next((index for index, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), None)
    return (min(len(left), len(right)) if same is None else same) / longest


def row(method: str, engine: str, engine_version: str, **found: Any) -> dict[str, Any]:
    """`answer` is the engine's, or why it has none; `reference` is what the same tokens were compared with."""
    nothing = {"loads": False, "answer": "", "reference": "", "agreement": None}
    return {"method": method, "engine": engine, "version": engine_version, **nothing, **found}


def compared(tokenizer: Any, ids: list[int], expected: list[int]) -> dict[str, Any]:
    answer, reference = (tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (ids, expected))
    return {"loads": True, "answer": answer, "reference": reference, "agreement": agreement(ids, expected)}


def show(values: dict[str, Any]) -> None:
    share = "" if values["agreement"] is None else f"{values['agreement']:.0%}"
    loads = "yes" if values["loads"] else "no"
    print(
        f"{values['method']:8} {values['engine']:10} {values['version']:10} {loads:5} {share:>5}  {values['answer']!r}"
    )
    if values["reference"] not in ("", values["answer"]):
        print(f"{'':42}compared with {values['reference']!r}")
    sys.stdout.flush()


def check_vllm(
    source: Checkpoint, methods: dict[str, dict[str, Any]], python: Path, folder: Path
) -> Iterator[dict[str, Any]]:
    tokenizer, prompt, stop = tokens_of(source)
    for name, method in methods.items():
        artifact = folder / name / "artifact"
        quantize(source, method, artifact)
        expected = ask_transformers(load_causal_lm(artifact), prompt, stop)
        try:
            ids = ask_vllm(python, artifact, prompt, folder / f"{name}.log")
        except (RuntimeError, httpx.HTTPError) as error:
            yield row(name, "vllm", CPU_BUILD.rpartition("=")[2], answer=str(error))
        else:
            yield row(name, "vllm", CPU_BUILD.rpartition("=")[2], **compared(tokenizer, ids, expected))


def check_gguf(source: Checkpoint, method: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    tokenizer, prompt, stop = tokens_of(source)
    quantize(source, method, folder / "gguf" / "artifact")
    file = folder / "gguf" / "artifact" / "model.gguf"
    ids = ask_llama_cpp(file, prompt, stop)
    expected = ask_transformers(load_gguf(file), prompt, stop)
    yield row("gguf", "llama.cpp", version("llama-cpp-python"), **compared(tokenizer, ids, expected))
    yield row("gguf", "gguf-py", version("gguf"), loads=True, answer=dump_gguf(file))


def tokens_of(source: Checkpoint) -> tuple[Any, list[int], int]:
    """The tokenizer, the question in the model's chat template, and the token that ends an answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
    messages = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    return tokenizer, prompt, tokenizer.eos_token_id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="calibrate with 4 windows of 64 tokens")
    parser.add_argument(
        "--environment", type=Path, default=Path("bitmill-data/engines/vllm"), help="where vLLM is or goes"
    )
    parser.add_argument("--only", choices=METHODS, nargs="+", default=list(METHODS), help="vLLM's rows to make")
    arguments = parser.parse_args()
    size = {"samples": 4, "sequence_length": 64} if arguments.quick else {"samples": 32, "sequence_length": 256}
    calibrated = {name: {**METHODS[name], "calibration": size} for name in CALIBRATED}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(data_dir=folder / "data")
        source = inspect_checkpoint(import_demo(parse_model_name(MODEL), settings, lambda fraction, stage: None))
        python = vllm_python(arguments.environment.resolve())
        gguf = check_gguf(source, {**GGUF, "calibration": size}, folder)
        methods = {name: (METHODS | calibrated)[name] for name in arguments.only}
        for checks in (gguf, check_vllm(source, methods, python, folder)):
            for found in checks:
                rows.append(found)
                show(found)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
