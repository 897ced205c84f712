"""The error tree: drawn in its docstring, distinct on the wire, and whole after a process boundary."""

from __future__ import annotations

import errno

import pytest

from app.domain import errors
from app.domain.error_data import error_classes, error_from_dict
from app.domain.errors import BitmillError, DiskFull, InvalidParameter
from app.domain.http_status import status_of


def _all_classes() -> list[type[BitmillError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, BitmillError)]


def test_the_docstring_draws_every_class() -> None:
    assert errors.__doc__ is not None
    missing = [cls.__name__ for cls in _all_classes() if cls.__name__ not in errors.__doc__]
    assert missing == []


def test_every_class_has_a_code_of_its_own() -> None:
    assert len(error_classes()) == len(_all_classes())


def test_an_error_object_always_has_its_four_fields() -> None:
    assert InvalidParameter("no", param="method.dtype").to_dict() == {
        "message": "no",
        "type": "invalid_request_error",
        "param": "method.dtype",
        "code": "invalid_parameter",
    }


@pytest.mark.parametrize("cls", _all_classes())
def test_an_error_survives_as_data(cls: type[BitmillError]) -> None:
    back = error_from_dict(cls("what happened", param="model").to_dict())
    assert type(back) is cls
    assert (back.message, back.param) == ("what happened", "model")


def test_a_full_disk_is_told_from_other_failures() -> None:
    full = DiskFull.from_os_error(OSError(errno.ENOSPC, "No space left on device", "model.gguf"))
    assert full is not None
    assert "model.gguf" in full.message
    assert DiskFull.from_os_error(OSError(errno.EACCES, "Permission denied")) is None


@pytest.mark.parametrize("cls", _all_classes())
def test_every_error_has_a_status_of_failure(cls: type[BitmillError]) -> None:
    assert 400 <= status_of(cls("x")) <= 599
