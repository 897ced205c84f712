"""Which text a calibrated method looks at, as parameters."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, Field, field_validator

from app.domain.files import FilePurpose, require_dataset

SELF: Final = "self"
NAMED_DATASETS: Final[dict[str, str]] = {
    "builtin": "prose, code, dialogue and several languages, written for Bitmill; needs no network",
    "python-docs": "the reference documentation inside every Python installation; needs no network",
    "wikitext2": "the training split of WikiText-2, from the hub",
    "c4": "English web pages, from the hub",
    "ultrachat": "conversations of UltraChat 200k, from the hub, through the model's chat template",
    SELF: "text that the model itself writes: needs no data",
}


class CalibrationParams(BaseModel, extra="forbid", frozen=True):
    """`samples` windows of `sequence_length` tokens, drawn without repetition."""

    dataset: str = Field(
        default="builtin",
        description=f"{', '.join(NAMED_DATASETS)}, or the id of an uploaded file of text or JSONL.",
    )
    samples: int = Field(default=32, ge=1, le=4096, description="How many windows.")
    sequence_length: int = Field(default=256, ge=8, le=32768, description="Tokens per window.")
    seed: int = Field(default=0, ge=0, description="Chooses among the windows, or what the model writes.")

    @field_validator("dataset")
    @classmethod
    def _known(cls, value: str) -> str:
        return require_dataset(value, NAMED_DATASETS, FilePurpose.CALIBRATION)


class CalibrationRecord(BaseModel, frozen=True):
    """What an artifact was calibrated with. `sha256` is of the token ids."""

    dataset: str
    samples: int
    sequence_length: int
    seed: int
    sha256: str
