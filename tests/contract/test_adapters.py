"""Adapters beside one base in one batch, against peft's own generation with each of them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from app.domain.errors import IncompatibleModel, InvalidParameter, ModelNotFound
from tests.fakes.adapters import random_adapter
from tests.fakes.models import tiny_model
from workers.serving.batching.adapters import Adapters, LowRank, read_adapter
from workers.serving.batching.generator import BatchedGenerator
from workers.serving.batching.sampling import SamplingSettings

# Longer than two pages of the cache, so that a shared prefix would be found.
PROMPT = [5 + number % 90 for number in range(80)]
TOKENS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("LlamaForCausalLM", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: random_adapter(base, folder / name, seed) for seed, name in enumerate(("first", "second"))}


@pytest.fixture(scope="module")
def expected(base: Path, adapters: dict[str, Path]) -> dict[str, list[int]]:
    """Greedy continuations by peft, and by the base alone under the empty name."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def greedy(model: torch.nn.Module) -> list[int]:
        tokens = model.generate(
            input_ids=torch.tensor([PROMPT]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )
        return tokens[0, len(PROMPT) :].tolist()

    found = {"": greedy(AutoModelForCausalLM.from_pretrained(base))}
    for name, folder in adapters.items():
        found[name] = greedy(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder))
    return found


async def generate(generator: BatchedGenerator, adapter: LowRank | None) -> list[int]:
    """Greedy tokens, read off the log-probabilities that come with each."""
    settings = SamplingSettings(temperature=0, top_logprobs=0)
    pieces = generator.generate(PROMPT, settings, max_tokens=TOKENS, stops=(), adapter=adapter)
    return [each.token async for piece in pieces for each in piece.logprobs]


@pytest.fixture(scope="module")
def generator(base: Path, adapters: dict[str, Path]) -> BatchedGenerator:
    made = BatchedGenerator(base, context_length=256, cache_tokens=2048, slots=8)
    made.ends = frozenset({639})  # random weights end at any time
    made.manager = made._manager(2048, 8)
    made.manager.start()
    asyncio.run(made.warm_up())
    for name, folder in adapters.items():
        made.adapters.load(name, folder)
    yield made
    made.manager.stop(block=True)


def run(generator: BatchedGenerator, names: Sequence[str]) -> list[list[int]]:
    async def together() -> list[list[int]]:
        chosen = [generator.adapters.get(name) if name else None for name in names]
        return await asyncio.gather(*(generate(generator, adapter) for adapter in chosen))

    return asyncio.run(together())


def test_the_adapters_say_different_things(expected: dict[str, list[int]]) -> None:
    assert len({tuple(tokens) for tokens in expected.values()}) == 3


def test_requests_of_one_batch_each_get_their_own(generator: BatchedGenerator, expected: dict[str, list[int]]) -> None:
    names = ["first", "", "second", "first", "", "second"]
    assert run(generator, names) == [expected[name] for name in names]


def test_no_prefix_is_shared_with_another_adapter(generator: BatchedGenerator, expected: dict[str, list[int]]) -> None:
    """One after the other, the same prompt: what one left in the cache must not serve the next."""
    for name in ["", "first", "second", "", "first"]:
        assert run(generator, [name]) == [expected[name]]


def test_an_adapter_of_an_adapter_is_the_sum_of_both(adapters: dict[str, Path]) -> None:
    def change(*folders: Path) -> dict[str, torch.Tensor]:
        return {layer: up @ down for layer, (down, up) in read_adapter(*folders).items()}

    first, second, both = change(adapters["first"]), change(adapters["second"]), change(*adapters.values())
    assert both.keys() == first.keys() == second.keys()
    for layer, changed in both.items():
        torch.testing.assert_close(changed, first[layer] + second[layer])


def test_prompts_are_scored_with_their_adapter(generator: BatchedGenerator) -> None:
    plain = generator.prompt_logprobs(PROMPT, 0)
    adapted = generator.prompt_logprobs(PROMPT, 0, generator.adapters.get("first"))
    assert plain != adapted
    assert generator.prompt_logprobs(PROMPT, 0) == plain


def test_adapters_that_are_loaded_at_once_hook_a_layer_once(base: Path, adapters: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    loaded = Adapters(model)
    both_are_at_it = threading.Barrier(2)
    hook = loaded._hook

    def slow_hook(layer: str) -> Callable[..., torch.Tensor]:
        with suppress(threading.BrokenBarrierError):  # only one is: so it should be
            both_are_at_it.wait(timeout=0.5)
        return hook(layer)

    loaded._hook = slow_hook  # type: ignore[method-assign]  # gives the other thread its chance
    with ThreadPoolExecutor() as threads:
        list(threads.map(loaded.load, adapters, adapters.values()))
    assert {len(module._forward_hooks) for module in model.modules()} == {0, 1}


def test_an_unknown_adapter_is_named(generator: BatchedGenerator) -> None:
    with pytest.raises(ModelNotFound, match="third"):
        generator.adapters.get("third")


def test_an_adapter_of_another_model_is_refused(generator: BatchedGenerator, tmp_path: Path) -> None:
    other = tiny_model("LlamaForCausalLM", tmp_path / "other", num_hidden_layers=4)
    with pytest.raises(InvalidParameter, match=r"layers\.[23]\."):
        generator.adapters.load("other", random_adapter(other, tmp_path / "adapter", 3))


def test_what_is_more_than_low_rank_matrices_is_refused(
    generator: BatchedGenerator, base: Path, tmp_path: Path
) -> None:
    folder = random_adapter(base, tmp_path / "dora", 3)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(IncompatibleModel, match="use_dora is True"):
        generator.adapters.load("dora", folder)
