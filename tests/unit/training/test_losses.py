"""Losses are means over learned tokens, and measuring them changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

from tests.fakes.training import FakeBase, request_for
from workers.training.collation import Padding, padding_of
from workers.training.examples import Encoder, Example
from workers.training.losses import evaluating, measure
from workers.training.low_rank import attach, load_low_rank_base
from workers.training.recipe import load_base


def test_every_learned_token_counts_the_same(base: FakeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the examples' lengths, and the batches that they are put in."""
    generator = np.random.default_rng(0)
    examples = [
        Example(generator.integers(3, 500, length).astype(np.int32), generator.random(length) < 0.5)
        for length in (9, 30, 14, 21)
    ]
    model = load_base(base.checkpoint, dtype=torch.float32)
    surprises, hits = [], []
    with torch.inference_mode():
        for example in examples:
            ids = torch.from_numpy(example.input_ids).long()
            found = log_softmax(model(ids[None]).logits[0], dim=-1)
            for place in np.flatnonzero(example.carries_loss[1:]):
                surprises.append(-float(found[place, ids[place + 1]]))
                hits.append(bool(found[place].argmax() == ids[place + 1]))
    for tokens in (10, 64, 10_000):
        monkeypatch.setattr("workers.training.losses.TOKENS_PER_PASS", tokens)
        measured = measure(model, examples, Padding(0))
        assert measured.loss == pytest.approx(np.mean(surprises), rel=1e-5)
        assert measured.accuracy == pytest.approx(np.mean(hits))
        assert measured.tokens == len(surprises)


def test_measuring_does_not_pack_the_weights_of_a_model_in_4_bits(base: FakeBase, facts: Path) -> None:
    """bitsandbytes packs them anew in evaluation on some processors, and could not compute gradients of them then."""
    options = request_for("qlora", dropout=0.5).bitmill
    model = attach(load_low_rank_base(base.checkpoint, options), options).train()
    weight = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj").base_layer.weight
    before = weight.data.clone()
    encoder = Encoder(base.checkpoint, 64)
    examples = encoder.encode_file(facts).items
    first, second = (measure(model, examples, padding_of(encoder.tokenizer)) for _ in range(2))
    assert first == second  # no dropout
    assert torch.equal(weight.data, before)
    assert not getattr(weight.quant_state, "packing_format_for_cpu", False)


def test_the_model_is_in_training_again_afterwards(base: FakeBase) -> None:
    options = request_for("qlora", dropout=0.5).bitmill
    model = attach(load_low_rank_base(base.checkpoint, options), options).train()
    with evaluating(model):
        states = {type(module).__name__: module.training for module in model.modules()}
        assert states["Dropout"] is False
        assert states["Linear4bit"] is True
    assert all(module.training for module in model.modules())
