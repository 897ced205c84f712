"""Model cards: what is in them, and that the hub can read their head."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
import yaml

from app.domain.artifacts import ArtifactFormat
from app.domain.cards import LIBRARIES, NEEDED, VLLM_METHODS, CardFacts, model_card, quality_json
from app.domain.evaluation import EngineFigures, EvaluationResult, SpeedFigures
from app.domain.quantization.catalog import CATALOG

QUALITY = {
    "dataset": "builtin", "dataset_sha256": "ab", "context_length": 512, "scored_tokens": 1024,
    "perplexity": {"value": 16.5, "standard_error": 0.25},
    "reference_perplexity": {"value": 16.0, "standard_error": 0.2},
    "kl_divergence": {"value": 0.0322, "standard_error": 0.001}, "kl_divergence_p99": None,
    "top1_agreement": {"value": 0.91, "standard_error": 0.01}, "generated_text": "Paris", "gate": "on",
}  # fmt: skip


def facts(**changes: Any) -> CardFacts:
    given: dict[str, Any] = {
        "name": "org/model:nf4", "source": "org/model@main", "format": ArtifactFormat.SAFETENSORS,
        "method": {"type": "bitsandbytes", "quantization": "nf4"}, "parameter_count": 1_000_000, "bits_per_weight": 4.5,
        "tensor_types": {"U8": 14, "BF16": 3}, "versions": {"torch": "2.13.0"}, "quality": QUALITY,
    }  # fmt: skip
    return CardFacts(**(given | changes))


def head(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(front)
    return found


def test_the_head_names_base_and_library() -> None:
    assert head(model_card(facts())) == {
        "library_name": "transformers", "base_model": "org/model", "base_model_relation": "quantized",
        "pipeline_tag": "text-generation", "tags": ["bitmill", "bitsandbytes"],
    }  # fmt: skip


@pytest.mark.parametrize("source", [
    "demo/smollm2-135m-instruct", "/models/x", "tiny", "file-0123456789abcdef01234567", "my/own/folder", "a b/c",
    "ft:org/model:bitmill::01234567",
])  # fmt: skip
def test_a_source_that_is_not_on_the_hub_is_no_base_model(source: str) -> None:
    assert "base_model" not in head(model_card(facts(source=source)))


@pytest.mark.parametrize(
    ("method", "format_", "relation"),
    [
        ({"type": "qlora"}, ArtifactFormat.ADAPTER, "adapter"),
        ({"type": "lora", "merge": True}, ArtifactFormat.SAFETENSORS, "finetune"),
        ({"type": "full"}, ArtifactFormat.SAFETENSORS, "finetune"),
        ({"type": "qat"}, ArtifactFormat.SAFETENSORS, "quantized"),
    ],
)
def test_trained_models_say_how_they_relate(method: dict[str, Any], format_: ArtifactFormat, relation: str) -> None:
    card = model_card(facts(method=method, format=format_, training={"loss": 1.25}, quality=None))
    assert head(card)["base_model_relation"] == relation
    assert "| loss (nats per learned token) | 1.2500 |" in card


def test_every_figure_is_there_with_its_error() -> None:
    card = model_card(facts(seconds=12.0, peak_memory_bytes=5_000_000, size_bytes=600_000))
    assert "| perplexity | 16.5000 ± 0.2500 |" in card
    assert "| KL divergence, mean (nats per token) | 0.0322 ± 0.0010 |" in card
    assert "| KL divergence, 99th percentile | not finite |" in card
    assert "1,024 tokens of `builtin`, windows of 512" in card
    assert "| size on disk | 600,000 bytes |" in card
    assert "torch 2.13.0" in card


def test_speed_is_there_once_it_was_measured() -> None:
    speed = SpeedFigures(
        requests=8, prompt_tokens=10, output_tokens=10, time_to_first_token_seconds=0.1,
        prefill_tokens_per_second=None, decode_tokens_per_second=42.0,
    )  # fmt: skip
    serving = EngineFigures(
        engine="transformers", engine_version="5", device="cpu", context_length=512, load_seconds=1.0,
        resident_bytes=7, gpu_bytes=None, predicted_bytes=7, speed=(speed,),
    )  # fmt: skip
    card = model_card(facts(evaluation=EvaluationResult(serving=serving)))
    assert "| decoding at 8 requests at a time | 42.0 tokens/s |" in card


def test_commands_take_any_name_as_a_name() -> None:
    name = "it's/$(date)"
    card = model_card(facts(name=name, source=name, format=ArtifactFormat.ADAPTER, method={"type": "lora"}))
    curl = shlex.split(card.partition("curl ")[2].partition("```")[0].replace("\\\n", ""))
    assert json.loads(curl[-1])["model"] == name
    assert shlex.split(card.partition("vllm serve ")[2].partition("```")[0])[0] == name


def test_quality_json_holds_the_facts() -> None:
    found = json.loads(quality_json(facts()))
    assert found["quality"]["kl_divergence"]["value"] == 0.0322
    assert CardFacts.model_validate(found) == facts()


def test_every_method_is_told_how_to_be_loaded() -> None:
    for name, spec in CATALOG.items():
        card = model_card(facts(method={"type": name}, format=spec.output))
        assert "## How to load it" in card
        assert head(card)["library_name"] == LIBRARIES.get(spec.output, "transformers")
    trained = {"full", "qat"}
    assert (NEEDED.keys() | VLLM_METHODS) - trained <= CATALOG.keys()
