"""How a checkpoint says that it is a model for embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import IncompatibleModel
from app.storage.pooling import Pooling, pooling_files, read_pooling
from tests.fakes.checkpoints import bare_checkpoint
from workers.quantization.checkpoints.reader import copy_companions


def sentence_transformer(folder: Path, pooling: dict[str, Any] | None, *more: str) -> Path:
    bare_checkpoint(folder)
    extra = {f"{number}_More": kind for number, kind in enumerate(more, 2)}
    kinds = {"": "Transformer", "1_Pooling": "Pooling"} | extra
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_pooling_is_read_in_its_older_and_newer_form(tmp_path: Path, config: dict[str, Any], mode: Any) -> None:
    assert read_pooling(sentence_transformer(tmp_path, config)) == Pooling(mode, normalize=False)


def test_a_module_may_normalize(tmp_path: Path) -> None:
    pooling = read_pooling(sentence_transformer(tmp_path, {"pooling_mode_mean_tokens": True}, "Normalize"))
    assert pooling == Pooling("mean", normalize=True)


@pytest.mark.parametrize(
    ("config", "more", "named"),
    [
        ({"pooling_mode_max_tokens": True}, (), "pooling_mode_max_tokens"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, (), "mean, cls"),
        ({"pooling_mode_mean_tokens": True}, ("Dense",), "Dense"),
        (None, (), "1_Pooling/config.json"),
    ],
)
def test_what_cannot_be_done_is_named(
    tmp_path: Path, config: dict[str, Any] | None, more: tuple[str, ...], named: str
) -> None:
    with pytest.raises(IncompatibleModel, match=named):
        read_pooling(sentence_transformer(tmp_path, config, *more))


def test_a_model_that_writes_text_has_none(tmp_path: Path) -> None:
    assert read_pooling(bare_checkpoint(tmp_path)) is None
    assert pooling_files(tmp_path) == []


def test_a_model_without_a_head_is_one_for_embeddings(tmp_path: Path) -> None:
    assert read_pooling(bare_checkpoint(tmp_path, architecture="BertModel")) == Pooling("mean", normalize=True)


def test_a_copy_pools_as_its_original(tmp_path: Path) -> None:
    source = sentence_transformer(tmp_path / "source", {"pooling_mode_cls_token": True})
    target = tmp_path / "target"
    target.mkdir()
    copy_companions(source, target)
    assert read_pooling(target) == read_pooling(source)
