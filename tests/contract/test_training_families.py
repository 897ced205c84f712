"""Every family of models is trained, merged, packed and proven: names of tensors and templates differ by family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.models import SHAPES, tiny_model
from tests.fakes.training import FACTS, FakeBase, RecordingHooks, request_for, write_facts
from workers.training.proof import prove_training
from workers.training.training import train

KINDS = {
    "qlora": request_for("qlora", epochs=4, multiplier=20.0),
    "merged": request_for("lora", epochs=4, multiplier=20.0, merge=True),
    "qat": request_for("qat", epochs=4, multiplier=50.0),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=SHAPES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FakeBase:
    folder = tiny_model(request.param, tmp_path_factory.mktemp("family") / "tiny", dtype="bfloat16")
    return FakeBase("local/tiny", inspect_checkpoint(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_is_trained_and_proven(kind: str, base: FakeBase, tmp_path: Path) -> None:
    request, settings = KINDS[kind], Settings(data_dir=tmp_path)
    facts, target = write_facts(tmp_path / "facts.jsonl", FACTS[:4]), tmp_path / "target"
    target.mkdir()
    report = train(base, target, request, facts, None, tmp_path / "checkpoints", RecordingHooks(), settings)
    proof = prove_training(base, target, request, report, facts, None, lambda *_: None, settings)
    assert proof.loss < 0.9 * proof.base_loss
    assert proof.expected_text.strip() == "By the river."
