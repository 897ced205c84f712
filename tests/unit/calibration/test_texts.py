"""Where calibration text comes from."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from app.domain.errors import HubUnreachable, InvalidParameter
from app.domain.quantization.calibration import CalibrationParams
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import tiny_llama
from workers.calibration.loading import load_calibration
from workers.calibration.texts import fingerprint, read_documents, read_file


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["builtin", "python-docs"])
def test_what_needs_no_network_is_there(name: str, settings: Settings) -> None:
    documents = read_documents(name, settings)
    assert sum(len(document) for document in documents) > 50_000
    assert fingerprint(documents) == fingerprint(read_documents(name, settings))


def test_jsonl_may_hold_text_pairs_and_conversations(tmp_path: Path) -> None:
    lines = [
        '{"text": "grain"}',
        "",
        '{"prompt": "2 + 2 = ", "completion": "4"}',
        '{"messages": [{"role": "user", "content": "Hi", "weight": 0}]}',
    ]
    path = write(tmp_path, "data", "\n".join(lines))
    assert read_file(path, "mill.jsonl") == ["grain", "2 + 2 = 4", [{"role": "user", "content": "Hi"}]]
    assert read_file(path, "mill.txt") == [path.read_text()]


@pytest.mark.parametrize("line", ["{", "[]", '{"messages": []}', '{"messages": [{"role": "user"}]}', '{"text": 5}'])
def test_a_bad_line_is_named_by_its_number(line: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match="line 2 is n"):
        read_file(write(tmp_path, "data", '{"text": "grain"}\n' + line), "mill.jsonl")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidParameter, match="not UTF-8"):
        read_file(path, "mill.txt")


def test_a_hub_that_nobody_answers_for_fails_soon_and_names_what_needs_none(settings: Settings) -> None:
    started = time.monotonic()
    with pytest.raises(HubUnreachable, match="'builtin', 'python-docs' or 'self'"):
        read_documents("wikitext2", settings.model_copy(update={"hub_endpoint": "http://127.0.0.1:9"}))
    assert time.monotonic() - started < 10


def test_a_model_can_write_its_own_text(tmp_path: Path) -> None:
    source = inspect_checkpoint(tiny_llama(tmp_path / "tiny"))
    params = CalibrationParams(dataset="self", samples=3, sequence_length=16, seed=4)
    first, again = (load_calibration(source, params, [], lambda fraction, stage: None) for _ in range(2))
    assert first.windows.shape == (3, 16)
    assert first.record == again.record
    assert first.windows.max() < 512


def test_conversations_go_through_the_chat_template(tmp_path: Path) -> None:
    source = inspect_checkpoint(tiny_llama(tmp_path / "tiny"))
    conversation = [{"role": "user", "content": "The miller carried the grain to the mill."}]
    params = CalibrationParams(dataset="file-000000000000000000000001", samples=1, sequence_length=8)
    chosen = load_calibration(source, params, [conversation], lambda fraction, stage: None)
    assert chosen.windows[0][0] == 1  # <|im_start|>
