"""What models are measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.errors import HubUnreachable, InvalidParameter
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from workers.calibration.texts import HUB_DATASETS
from workers.evaluation import sample as samples
from workers.evaluation.quality import read_dataset
from workers.evaluation.sample import cut_sample, load_sample

MESSAGES = [{"role": "user", "content": "Where does the miller carry the grain?"}]


def test_the_builtin_text_is_the_proofs(settings: Settings, tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(tiny_llama(tmp_path / "tiny"))
    documents = read_dataset("builtin", settings)
    ours = cut_sample(checkpoint, "builtin", documents, length=64, limit=2)
    proofs = load_sample(checkpoint, settings)
    assert (ours.name, len(ours.windows), ours.context_length) == (samples.NAME, 2, 64)
    assert [list(window) for window in ours.windows] == [list(window) for window in proofs.windows]


def test_measuring_and_calibrating_never_read_the_same_split() -> None:
    assert all(source.held_out != source.split for source in HUB_DATASETS.values())


def test_a_hub_out_of_reach_is_said_with_what_needs_none(settings: Settings) -> None:
    with pytest.raises(HubUnreachable, match="'builtin' or 'python-docs'") as caught:
        read_dataset("wikitext2", settings.model_copy(update={"hub_endpoint": "http://127.0.0.1:9"}))
    assert caught.value.param == "dataset"


def test_conversations_go_through_the_chat_template_or_are_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "tiny")
    checkpoint = inspect_checkpoint(folder)
    assert cut_sample(checkpoint, "chats", [MESSAGES], length=8, limit=1).text.startswith("<|im_start|>user\nWhere")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidParameter, match="no chat template") as caught:
        cut_sample(checkpoint, "chats", [MESSAGES], length=8, limit=1)
    assert caught.value.param == "dataset"


def test_too_little_text_is_refused_with_figures(tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(tiny_llama(tmp_path / "tiny"))
    with pytest.raises(InvalidParameter, match="a window needs 64"):
        cut_sample(checkpoint, "file", ["Too short."], length=64, limit=1)
