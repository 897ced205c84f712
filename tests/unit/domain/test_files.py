from __future__ import annotations

import pytest

from app.domain.errors import InvalidParameter
from app.domain.files import (
    FilePurpose,
    clean_filename,
    parse_purpose,
    require_fitting_name,
    require_purpose,
    uploads_in,
)

ID = "file-0123456789abcdef01234567"


def test_an_unknown_purpose_lists_those_that_exist() -> None:
    assert parse_purpose("model") is FilePurpose.MODEL
    with pytest.raises(InvalidParameter, match=r"'assistants' is unknown; use one of 'fine-tune', .*'imatrix'"):
        parse_purpose("assistants")


@pytest.mark.parametrize("text", ["a/b/tiny.zip", "C:\\models\\tiny.zip", "../tiny.zip", "tiny.zip"])
def test_a_filename_is_the_last_part_of_what_the_client_gave(text: str) -> None:
    assert clean_filename(text) == "tiny.zip"


@pytest.mark.parametrize("text", ["", "folder/", "a\0b", "line\nbreak", "x" * 256])
def test_a_filename_that_cannot_be_shown_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        clean_filename(text)
    assert caught.value.param == "file"


@pytest.mark.parametrize("name", ["m.gguf", "m.tar", "m.tar.gz", "m.TGZ", "m.zip"])
def test_models_come_in_known_formats(name: str) -> None:
    require_fitting_name(name, FilePurpose.MODEL)


def test_only_models_need_a_known_format() -> None:
    require_fitting_name("texts.jsonl", FilePurpose.CALIBRATION)
    with pytest.raises(InvalidParameter, match=r"'texts.jsonl' has purpose 'model'.*\.tar\.gz"):
        require_fitting_name("texts.jsonl", FilePurpose.MODEL)


def test_a_file_of_another_purpose_is_no_model() -> None:
    require_purpose(ID, "model", FilePurpose.MODEL, param="model")
    with pytest.raises(InvalidParameter, match=r"purpose 'evaluation'.*purpose 'model'") as caught:
        require_purpose(ID, "evaluation", FilePurpose.MODEL, param="model")
    assert caught.value.param == "model"


def test_uploads_are_found_however_deep_in_a_method() -> None:
    method = {"type": "gguf", "calibration": {"dataset": ID}, "list": ["file-short", ID[:-1] + "f"]}
    assert uploads_in(["org/name", method]) == {ID, ID[:-1] + "f"}
    assert uploads_in([ID, {"seed": 1, "ratio": 0.5, "text": f"see {ID}"}]) == {ID}
