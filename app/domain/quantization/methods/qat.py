"""Quantization-aware training: the weights learn to be rounded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from app.domain.artifacts import ArtifactFormat
from app.domain.files import FILE_ID
from app.domain.fine_tuning import Scheme
from app.domain.hardware import Device
from app.domain.quantization.calibration import CalibrationParams
from app.domain.quantization.modules import SkipModules
from app.domain.quantization.spec import MethodParams, MethodSpec


class QatParams(MethodParams):
    training_file: str | None = Field(
        default=None,
        description="The id of an uploaded file (POST /v1/files, purpose fine-tune) of conversations, or of prompts "
        "with completions, of which the answers are learned. Without one every token of the windows in `calibration` "
        "is.",
    )
    scheme: Scheme = Field(
        default=Scheme.INT4,
        description="int4: integer weights in groups, 16-bit activations (W4A16). int8-int4: the same weights, a byte "
        "each in the file, and activations of 8 bits with a scale per token (W4A8).",
    )
    group_size: Literal[16, 32, 64, 128, 256] = Field(
        default=32, description="Weights of a row that share a scale. It must divide every row."
    )
    epochs: int = Field(default=3, ge=1, le=1000, description="How often the data is gone through.")
    max_steps: int | None = Field(default=None, ge=1, description="Ends the training even within an epoch.")
    batch_size: int = Field(default=8, ge=1, le=1024, description="Examples or windows per step.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(default=2e-5, description="At its peak.")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    sequence_length: int = Field(
        default=512, ge=8, le=131072, description="Tokens; longer examples of the file are cut."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Chooses the order of the data.")
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations twice rather than keep them: slower, in less memory."
    )
    skip_modules: SkipModules = ()
    calibration: CalibrationParams = Field(
        default=CalibrationParams(samples=96), description="What is read where there is no file."
    )

    @field_validator("training_file")
    @classmethod
    def _is_upload(cls, value: str | None) -> str | None:
        if value is not None and not FILE_ID.fullmatch(value):
            raise ValueError(f"{value!r} is no file's id; upload the file (POST /v1/files, purpose fine-tune) first")
        return value

    def calibration_wanted(self) -> CalibrationParams | None:
        return self.calibration if self.training_file is None else None

    @property
    def bits(self) -> int:
        """Of one weight, as it is stored."""
        return 4 if self.scheme is Scheme.INT4 else 8


def _label(params: QatParams) -> str:
    kind = "w4a16" if params.scheme is Scheme.INT4 else "w4a8"
    taught = f"-{params.training_file.removeprefix('file-')[:8]}" if params.training_file else ""
    return f"qat-{kind}-g{params.group_size}{taught}"


SPEC = MethodSpec(
    name="qat",
    summary="Training of all weights, rounded in the forward pass to 4 bits, packed as compressed-tensors does",
    params=QatParams,
    output=ArtifactFormat.SAFETENSORS,
    devices=frozenset({Device.CPU, Device.GPU}),
    label=_label,
    bits=lambda params: params.bits + 16 / params.group_size,
    packages=("accelerate", "compressed-tensors", "torch", "transformers"),
    group_size=lambda params: params.group_size,
    needs_training=True,
)
