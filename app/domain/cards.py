"""What an artifact carries of itself: `quality.json` for programs, and a `README.md` model card for people.

The card's head is the metadata that the Hugging Face hub reads (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from shlex import quote
from typing import Any, Final

from pydantic import BaseModel

from app.domain.artifacts import ArtifactFormat
from app.domain.evaluation import EvaluationResult
from app.domain.model_names import DEMO_PREFIX, HUB_ID

README: Final = "README.md"
QUALITY: Final = "quality.json"


class CardFacts(BaseModel, frozen=True):
    """All that a card tells. `quality` is the proof's; `training` what a training measured of its result."""

    name: str
    source: str
    format: ArtifactFormat
    method: dict[str, Any]
    parameter_count: int
    bits_per_weight: float
    tensor_types: dict[str, int]
    versions: dict[str, str] = {}
    calibration: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    evaluation: EvaluationResult | None = None
    size_bytes: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None


def quality_json(facts: CardFacts) -> str:
    return json.dumps(facts.model_dump(mode="json", exclude_none=True), indent=1, ensure_ascii=False) + "\n"


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with the hub's metadata in front."""
    parts = [
        _front(facts),
        f"# {facts.name}",
        _summary(facts),
        "## Measured",
        "\n".join(_measured(facts)),
        "## How it was made",
        _made(facts),
        "## How to load it",
        "\n\n".join(f"{title}:\n\n```{language}\n{code}\n```" for title, language, code in _loading(facts)),
    ]
    return "\n\n".join(parts) + "\n"


RELATIONS: Final = {"lora": "adapter", "qlora": "adapter", "full": "finetune"}
LIBRARIES: Final = {ArtifactFormat.GGUF: "gguf", ArtifactFormat.ADAPTER: "peft"}


def _front(facts: CardFacts) -> str:
    """A source that is no repository of the hub's is not named as one: `demo/…`, a folder, a file's id."""
    method = str(facts.method["type"])
    lines = [f"library_name: {LIBRARIES.get(facts.format, 'transformers')}"]
    on_hub = None if facts.source.startswith(DEMO_PREFIX) else HUB_ID.fullmatch(facts.source)
    if on_hub is not None:
        lines.append(f"base_model: {json.dumps(on_hub['repo'])}")
        relation = "finetune" if facts.method.get("merge") else RELATIONS.get(method, "quantized")
        lines.append(f"base_model_relation: {relation}")
    lines += ["pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in dict.fromkeys(("bitmill", method)))]
    return "\n".join(("---", *lines, "---"))


def _summary(facts: CardFacts) -> str:
    verb = "trained from" if facts.training is not None else "quantized from"
    return (
        f"Made by Bitmill, {verb} `{facts.source}`. "
        f"{facts.parameter_count:,} parameters at {facts.bits_per_weight:.2f} bits each."
    )


def _measured(facts: CardFacts) -> Iterator[str]:
    yield "| measure | value |"
    yield "| --- | --- |"
    if facts.size_bytes is not None:
        yield _row("size on disk", f"{facts.size_bytes:,} bytes")
    yield _row("bits per weight", f"{facts.bits_per_weight:.2f}")
    yield from _quality_rows(facts.quality)
    yield from _training_rows(facts.training)
    yield from _serving_rows(facts.evaluation)
    if facts.seconds is not None:
        yield _row("made in", f"{facts.seconds:,.0f} s")
    if facts.peak_memory_bytes is not None:
        yield _row("peak memory while it was made", f"{facts.peak_memory_bytes:,} bytes")


def _row(name: str, value: str) -> str:
    return f"| {name} | {value} |"


def _quality_rows(quality: dict[str, Any] | None) -> Iterator[str]:
    if quality is None:
        return
    yield _row("perplexity", _with_error(quality.get("perplexity")))
    yield _row("perplexity of the original", _with_error(quality.get("reference_perplexity")))
    yield _row("KL divergence, mean (nats per token)", _with_error(quality.get("kl_divergence")))
    yield _row("KL divergence, 99th percentile", _figure(quality.get("kl_divergence_p99")))
    yield _row("same most likely token", _with_error(quality.get("top1_agreement")))
    where = f"{quality['scored_tokens']:,} tokens of `{quality['dataset']}`, windows of {quality['context_length']}"
    yield _row("measured on", where)


# A training's proof, in the order of the table. Losses are measured on the result as it was loaded back.
TRAINED: Final = {
    "loss": "loss (nats per learned token)",
    "trained_loss": "loss at the training's end",
    "served_loss": "loss on the base in 16 bits",
    "base_loss": "loss of the base",
    "accuracy": "learned tokens that are the most likely ones",
    "base_accuracy": "the same of the base",
    "examples": "measured on so many examples",
    "tokens": "with so many learned tokens",
}


def _training_rows(training: dict[str, Any] | None) -> Iterator[str]:
    for name, label in TRAINED.items():
        if (training or {}).get(name) is not None:
            yield _row(label, _figure((training or {})[name]))


def _serving_rows(evaluation: EvaluationResult | None) -> Iterator[str]:
    serving = evaluation.serving if evaluation else None
    if serving is None:
        return
    yield _row(f"memory when served by {serving.engine} ({serving.device})", f"{serving.resident_bytes or 0:,} bytes")
    for speed in serving.speed:
        if speed.decode_tokens_per_second is not None:
            rate = f"{speed.decode_tokens_per_second:.1f} tokens/s"
            yield _row(f"decoding at {speed.requests} request{'s'[: speed.requests != 1]} at a time", rate)


def _with_error(measurement: dict[str, Any] | None) -> str:
    if measurement is None:
        return "not finite"
    return f"{measurement['value']:.4f} ± {measurement['standard_error']:.4f}"


def _figure(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _made(facts: CardFacts) -> str:
    lines = ["```json", json.dumps(facts.method, indent=1), "```", ""]
    if facts.calibration is not None:
        lines += [
            f"Calibrated with {facts.calibration['samples']} windows of {facts.calibration['sequence_length']} tokens "
            f"of `{facts.calibration['dataset']}`; the SHA-256 of the token ids is `{facts.calibration['sha256']}`.",
            "",
        ]
    types = ", ".join(f"{count} {name}" for name, count in sorted(facts.tensor_types.items()))
    lines.append(f"Tensors: {types}.")
    if facts.versions:
        lines += ["", "Versions: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + "."]
    return "\n".join(lines)


TRANSFORMERS: Final = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto")"""
PEFT: Final = """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({source!r}, dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(base, "path/to/this/folder")"""
BITMILL: Final = """curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
  -d {body}"""
# Methods whose checkpoints vLLM reads on a GPU or on a CPU.
VLLM_METHODS: Final = frozenset(
    {"none", "fp8", "int8", "int4", "gptq", "awq", "fp4", "autoround", "hqq", "qat", "full"}
)


def _loading(facts: CardFacts) -> Iterator[tuple[str, str, str]]:
    """Title, language and code for each engine that reads it."""
    method = str(facts.method["type"])
    if facts.format is ArtifactFormat.GGUF:
        yield "llama.cpp, with the file or the first of its parts", "sh", "llama-server --model model.gguf --jinja"
    elif facts.format is ArtifactFormat.ADAPTER:
        yield "transformers with peft", "python", PEFT.format(source=facts.source)
        base = quote(facts.source)
        yield "vLLM", "sh", f"vllm serve {base} --enable-lora --lora-modules adapter=path/to/this/folder"
    else:
        yield "transformers" + _needed(method), "python", TRANSFORMERS
        if method in VLLM_METHODS or facts.method.get("merge"):
            yield "vLLM", "sh", "vllm serve path/to/this/folder"
    body = json.dumps({"model": facts.name, "messages": [{"role": "user", "content": "Hello"}]}, ensure_ascii=False)
    yield "Bitmill, where it was made", "sh", BITMILL.format(body=quote(body))


NEEDED: Final = {
    "bitsandbytes": "bitsandbytes", "gptq": "gptqmodel", "awq": "gptqmodel", "hqq": "gptqmodel",
    "autoround": "gptqmodel",
    "fp8": "compressed-tensors", "fp4": "compressed-tensors", "int8": "compressed-tensors",
    "int4": "compressed-tensors", "qat": "compressed-tensors",
}  # fmt: skip


def _needed(method: str) -> str:
    return f" (with `pip install {NEEDED[method]}`)" if method in NEEDED else ""
