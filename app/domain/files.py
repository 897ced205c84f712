"""Uploaded files: what they may be for, and what their names may be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from app.domain.errors import InvalidParameter

FILE_ID: Final = re.compile(r"file-[0-9a-f]{24}")
MAX_FILENAME_LENGTH: Final = 255
# A model arrives as one file: GGUF, or an archive of a Hugging Face checkpoint's folder.
MODEL_SUFFIXES: Final = (".gguf", ".tar", ".tar.gz", ".tgz", ".zip")


class FilePurpose(StrEnum):
    FINE_TUNE = "fine-tune"  # texts to train on
    CALIBRATION = "calibration"  # texts from which a method learns what to keep
    EVALUATION = "evaluation"  # texts that models are measured on
    MODEL = "model"  # a checkpoint, whose id is then a model name for jobs
    IMATRIX = "imatrix"  # an importance matrix of llama.cpp
    FINE_TUNE_RESULTS = "fine-tune-results"  # what a training measured at each step; Bitmill's own to write


UPLOADABLE: Final = tuple(purpose for purpose in FilePurpose if purpose is not FilePurpose.FINE_TUNE_RESULTS)


def parse_purpose(text: str) -> FilePurpose:
    """Raises InvalidParameter, which lists the purposes that exist."""
    try:
        return FilePurpose(text)
    except ValueError as error:
        known = ", ".join(repr(purpose.value) for purpose in FilePurpose)
        raise InvalidParameter(f"purpose {text!r} is unknown; use one of {known}", param="purpose") from error


def clean_filename(text: str) -> str:
    """The last part of a file's name as a client gave it. It is shown and never becomes a path.

    Raises InvalidParameter for a name that cannot be shown.
    """
    name = text.replace("\\", "/").rpartition("/")[2]
    if not name or len(name) > MAX_FILENAME_LENGTH or not name.isprintable():
        raise InvalidParameter(
            f"file name {name[:80]!r} is none: give 1 to {MAX_FILENAME_LENGTH} printable characters", param="file"
        )
    return name


def require_purpose(file_id: str, purpose: str, wanted: FilePurpose, *, param: str) -> None:
    """Raises InvalidParameter for a file that was uploaded for something else than what `param` names it for."""
    if purpose != wanted:
        raise InvalidParameter(
            f"file {file_id!r} was uploaded with purpose {purpose!r}; upload it again with purpose {wanted.value!r}",
            param=param,
        )


def require_dataset(value: str, named: Mapping[str, str], purpose: FilePurpose) -> str:
    """The value, where it names a data set or is the id of an upload. Raises ValueError."""
    if value not in named and not FILE_ID.fullmatch(value):
        raise ValueError(
            f"there is no dataset {value!r}; use {', '.join(named)}, or upload a file (POST /v1/files, purpose "
            f"{purpose.value}) and give its id"
        )
    return value


def uploads_in(value: Any) -> set[str]:
    """The ids of uploaded files among the texts of a job's model or method."""
    if isinstance(value, str):
        return {value} if FILE_ID.fullmatch(value) else set()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {found for part in parts for found in uploads_in(part)}


def require_fitting_name(name: str, purpose: FilePurpose) -> None:
    """Raises InvalidParameter for a model in a format that no importer reads, and for what nobody uploads."""
    if purpose not in UPLOADABLE:
        known = ", ".join(repr(purpose.value) for purpose in UPLOADABLE)
        raise InvalidParameter(
            f"files with purpose {purpose.value!r} come from jobs; use one of {known}", param="purpose"
        )
    if purpose is FilePurpose.MODEL and not name.lower().endswith(MODEL_SUFFIXES):
        raise InvalidParameter(
            f"file {name!r} has purpose 'model', which takes {', '.join(MODEL_SUFFIXES)}; pack the folder of a "
            "Hugging Face checkpoint into one of these archives",
            param="file",
        )
