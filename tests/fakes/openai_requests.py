"""Requests for tiny models through OpenAI's client, and what their answers have to follow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.fakes.checkpoints import tiny_tokenizer
from tests.fakes.serving import error_of

# One artifact for each engine; the second of each has a chat template that knows of tools.
ENGINES = {"transformers": {"type": "none", "dtype": "bf16"}, "llama_cpp": {"type": "gguf", "quantization": "Q8_0"}}
# vLLM has an environment of its own, and takes part where BITMILL_TEST_ENGINES_DIR says that it is installed.
ENGINES_FOLDER = Path(os.environ["BITMILL_TEST_ENGINES_DIR"]) if "BITMILL_TEST_ENGINES_DIR" in os.environ else None
if ENGINES_FOLDER is not None and (ENGINES_FOLDER / "vllm").exists():
    ENGINES["vllm"] = {"type": "none", "dtype": "bf16"}
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
