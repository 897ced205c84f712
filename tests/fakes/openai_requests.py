"""Requests for tiny models through OpenAI's client, and what their answers have to follow."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

from app.domain.hardware import Device
from app.domain.quantization.catalog import parse_method
from app.settings import Settings
from tests.fakes.checkpoints import tiny_tokenizer
from tests.fakes.serving import error_of
from workers.serving.engines.registry import load_engine

FEW = {"samples": 8, "sequence_length": 64}
# One of each kind of artifact that is served.
ARTIFACTS: dict[str, dict[str, Any]] = {
    "bf16": {"type": "none", "dtype": "bf16"},
    "fp16": {"type": "none", "dtype": "fp16"},
    "int8": {"type": "bitsandbytes", "quantization": "int8"},
    "nf4": {"type": "bitsandbytes", "quantization": "nf4"},
    "fp4": {"type": "bitsandbytes", "quantization": "fp4"},
    "fp8": {"type": "fp8"},
    "fp8-e5m2": {"type": "fp8", "format": "e5m2", "activations": "none"},
    "int8-w8a8": {"type": "int8"},
    "int4-w4a16": {"type": "int4", "group_size": 64},
    "nvfp4": {"type": "fp4", "format": "nvfp4"},
    "mxfp4": {"type": "fp4", "format": "mxfp4"},
    "gptq": {"type": "gptq", "group_size": 64, "calibration": FEW},
    "gptq-mixed": {"type": "gptq", "group_size": 64, "overrides": {"mlp": {"bits": 8}}, "calibration": FEW},
    "awq": {"type": "awq", "group_size": 64, "calibration": FEW},
    "qat": {"type": "qat", "group_size": 64, "max_steps": 2, "calibration": FEW},
    "Q8_0": {"type": "gguf", "quantization": "Q8_0"},
    "Q4_K_M": {"type": "gguf", "quantization": "Q4_K_M"},
    "F16-parts": {"type": "gguf", "quantization": "F16", "split_bytes": 600_000},
}
# vLLM has an environment of its own, and takes part where BITMILL_TEST_ENGINES_DIR says that it is installed.
ENGINES_FOLDER = Path(os.environ["BITMILL_TEST_ENGINES_DIR"]) if "BITMILL_TEST_ENGINES_DIR" in os.environ else None
ENGINES = ["transformers", "llama_cpp"]
if ENGINES_FOLDER is not None and (ENGINES_FOLDER / "vllm").exists():
    ENGINES.append("vllm")


class Case(NamedTuple):
    """An artifact, by its name above, on an engine."""

    engine: str
    artifact: str


def every_case() -> dict[str, Case]:
    found = {}
    for engine, (artifact, method) in product(ENGINES, ARTIFACTS.items()):
        kind, _ = parse_method(method)
        loads = load_engine(engine, Settings()).spec.loads(kind.output, kind.name, Device.CPU)
        if loads and (engine, artifact) != ("vllm", "gptq-mixed"):  # it refuses 8 bits of GPTQ
            found[f"{engine}-{artifact}"] = Case(engine, artifact)
    return found


# One artifact for each engine, and those that BITMILL_TEST_ARTIFACTS names, separated by commas, or "all".
WANTED = os.environ.get("BITMILL_TEST_ARTIFACTS", "").split(",")
CASES = {engine: Case(engine, "Q8_0" if engine == "llama_cpp" else "bf16") for engine in ENGINES}
CASES |= {
    name: case
    for name, case in every_case().items()
    if case not in CASES.values() and {case.artifact, "all"} & set(WANTED)
}
CONTEXT_LENGTH = 1024
HELLO: Any = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = "The miller carried the grain."
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["town", "village"]},
        "parts": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["city", "size", "kind", "parts"],
    "additionalProperties": False,
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "forecast", "description": "Tells the weather", "parameters": PARAMETERS},
    },
    {
        "type": "function",
        "function": {"name": "stop", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    },
]


def never_ending() -> dict[str, int]:
    """A bias against every end, and against parts of characters, which have no text of their own."""
    tokenizer = tiny_tokenizer()
    parts = [token for token in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([token])]
    return {str(token): -100 for token in [*tokenizer.all_special_ids, *parts]}


def ask(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": model, "messages": HELLO, "max_tokens": 12, **fields})


def complete(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    given = {"model": model, "prompt": PROMPT, "max_tokens": 12, "logit_bias": never_ending()}
    return client.completions.create(**(given | fields))


def refused(client: openai.OpenAI, model: str, make: Any = ask, **fields: Any) -> dict[str, Any]:
    with pytest.raises(openai.BadRequestError) as raised:
        make(client, model, **fields)
    assert error_of(raised)["type"] == "invalid_request_error"
    return error_of(raised)
