"""Figures and files against other people's computations of the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.domain.quantization.catalog import parse_method
from app.settings import Settings
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.contract.test_methods import prove, quantize
from tests.fakes.checkpoints import tiny_llama
from workers.evaluation.sample import load_sample
from workers.quantization.methods.bitsandbytes import quantization_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return inspect_checkpoint(tiny_llama(folder, hidden_size=256, intermediate_size=512, tie_word_embeddings=True))


@pytest.mark.parametrize(
    "method",
    [
        {"quantization": "int8"},
        {"quantization": "nf4"},
        {"quantization": "nf4", "double_quant": True},
        {"quantization": "fp4", "compute_dtype": "fp32"},
    ],
)
def test_streamed_bitsandbytes_files_equal_save_pretrained(
    method: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    _, params = parse_method({"type": "bitsandbytes", **method})
    quantize(checkpoint, {"type": "bitsandbytes", **method}, tmp_path / "ours")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[params.compute_dtype]
    theirs = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, quantization_config=quantization_config(params), dtype=dtype, device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours_file = load_file(tmp_path / "ours" / "model.safetensors")
    theirs_file = load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours_file.keys() == theirs_file.keys()
    for name, tensor in theirs_file.items():
        assert ours_file[name].dtype == tensor.dtype, name
        assert torch.equal(ours_file[name], tensor), name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_perplexity_of_safetensors_equals_transformers_own_loss(
    dtype: str, checkpoint: Checkpoint, settings: Settings, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    target = tmp_path / "artifact"
    _, output = quantize(checkpoint, {"type": "none", "dtype": dtype}, target)
    card = prove(checkpoint, target, output, settings)
    model = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    losses = []
    for window in load_sample(checkpoint, settings).windows:
        ids = torch.from_numpy(window)[None]
        labels = ids.clone()
        labels[:, : len(window) // 2 + 1] = -100  # transformers shifts labels by one itself
        with torch.inference_mode():
            losses.append(model(ids, labels=labels).loss.item())
    assert card.perplexity.value == pytest.approx(math.exp(np.mean(losses)), abs=5e-4 * card.perplexity.value)


@pytest.fixture
def stored_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp computes on the weights as they lie in the file, as it does for our scorer."""
    from llama_cpp import llama_cpp

    default = llama_cpp.llama_model_default_params

    def params() -> Any:
        given = default()
        given.use_extra_bufts = False
        return given

    monkeypatch.setattr(llama_cpp, "llama_model_default_params", params)


@pytest.mark.usefixtures("stored_layout")
@pytest.mark.parametrize("quantization", ["F16", "Q8_0", "Q4_K_M"])
def test_perplexity_of_gguf_equals_llama_cpps_high_level_interface(
    quantization: str, checkpoint: Checkpoint, settings: Settings, tmp_path: Path
) -> None:
    from llama_cpp import Llama

    target = tmp_path / "artifact"
    _, output = quantize(checkpoint, {"type": "gguf", "quantization": quantization}, target)
    card = prove(checkpoint, target, output, settings)
    # Flash attention is what llama.cpp chooses by itself here, this interface does not.
    llama = Llama(str(target / "model.gguf"), n_ctx=64, n_batch=64, flash_attn=True, logits_all=True, verbose=False)
    total, count = 0.0, 0
    for window in load_sample(checkpoint, settings).windows:
        llama.reset()
        llama.eval(window.tolist())
        for position in range(len(window) // 2, len(window) - 1):
            scores = torch.from_numpy(llama.scores[position].astype(np.float64))
            total -= torch.log_softmax(scores, dim=-1)[window[position + 1]].item()
            count += 1
    assert count == card.scored_tokens
    assert card.perplexity.value == pytest.approx(math.exp(total / count), rel=1e-6)
