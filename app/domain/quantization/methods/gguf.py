"""GGUF: the format and the block types of llama.cpp."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.domain.artifacts import ArtifactFormat
from app.domain.hardware import Device
from app.domain.quantization.calibration import CalibrationParams
from app.domain.quantization.spec import MethodParams, MethodSpec

# Types that need no importance matrix, with llama.cpp's own bits per weight for a 7 B llama.
BITS = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.56,
    "Q5_K_M": 5.68,
    "Q5_K_S": 5.52,
    "Q5_1": 6.0,
    "Q5_0": 5.52,
    "Q4_K_M": 4.84,
    "Q4_K_S": 4.58,
    "Q4_1": 5.0,
    "Q4_0": 4.55,
    "IQ4_NL": 4.5,
    "IQ4_XS": 4.25,
    "Q3_K_L": 4.27,
    "Q3_K_M": 3.91,
    "Q3_K_S": 3.5,
    "Q2_K": 3.35,
}

GgufType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S",
    "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
]  # fmt: skip


# Types whose rounding errors an importance matrix weighs. Eight bits gain nothing from one.
WEIGHED = frozenset(BITS) - {"F32", "F16", "BF16", "Q8_0"}


class GgufParams(MethodParams):
    quantization: GgufType = Field(
        default="Q4_K_M",
        description="llama.cpp's name of the mix. A tensor whose rows the type cannot divide falls back to "
        "another type; the artifact's tensor_types tell what was really stored.",
    )
    importance_matrix: Literal["auto", "none"] = Field(
        default="auto",
        description="auto weighs rounding errors by the inputs that calibration text causes, for types below "
        "8 bits; none takes all columns for equal.",
    )
    calibration: CalibrationParams = Field(
        default=CalibrationParams(), description="The text from which the importance matrix is computed."
    )

    def calibration_wanted(self) -> CalibrationParams | None:
        wanted = self.importance_matrix == "auto" and self.quantization in WEIGHED
        return self.calibration if wanted else None


SPEC = MethodSpec(
    name="gguf",
    summary="llama.cpp's formats, Q4_K_M first",
    params=GgufParams,
    output=ArtifactFormat.GGUF,
    devices=frozenset({Device.CPU}),
    label=lambda params: f"gguf-{params.quantization}",
    bits=lambda params: BITS[params.quantization],
    packages=("gguf", "llama-cpp-python"),
    architectures=frozenset({"LlamaForCausalLM", "MistralForCausalLM"}),
)
