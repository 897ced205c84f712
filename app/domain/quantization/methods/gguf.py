"""GGUF: the format and the block types of llama.cpp."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from app.domain.artifacts import ArtifactFormat
from app.domain.files import FILE_ID
from app.domain.hardware import Device
from app.domain.quantization.calibration import CalibrationParams
from app.domain.quantization.spec import MethodParams, MethodSpec

# llama.cpp's own bits per weight for a llama of 7 or 8 B, its output head included.
# Left out, as tried with llama-cpp-python 0.3.36: MXFP4_MOE turns a dense model into Q8_0; NVFP4 is refused as a mix
# ("invalid output file type 39"); a file in Q2_0 is one that gguf-py 0.19 cannot read.
BITS: Final = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.56,
    "Q5_K_M": 5.68, "Q5_K_S": 5.52, "Q5_1": 6.0, "Q5_0": 5.52,
    "Q4_K_M": 4.84, "Q4_K_S": 4.58, "Q4_1": 5.0, "Q4_0": 4.55, "IQ4_NL": 4.68, "IQ4_XS": 4.46,
    "Q3_K_L": 4.3, "Q3_K_M": 3.99, "Q3_K_S": 3.64, "IQ3_M": 3.76, "IQ3_S": 3.66, "IQ3_XS": 3.5, "IQ3_XXS": 3.25,
    "Q2_K": 3.35, "Q2_K_S": 2.97, "IQ2_M": 2.93, "IQ2_S": 2.74, "IQ2_XS": 2.59, "IQ2_XXS": 2.38,
    "TQ2_0": 2.52, "TQ1_0": 2.2, "IQ1_M": 2.15, "IQ1_S": 2.0, "Q1_0": 1.5,
}  # fmt: skip

GgufType = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S",
    "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "TQ1_0", "IQ1_M", "IQ1_S", "Q1_0",
]  # fmt: skip

# Types whose rounding errors an importance matrix weighs. Eight bits gain nothing from one, and the ternary and
# binary types, which are for models trained in them, ignore it.
WEIGHED: Final = frozenset(BITS) - {"F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "Q1_0"}
# Types that llama.cpp refuses to make without one ("this quantization requires an imatrix!").
NEEDS_MATRIX: Final = frozenset(
    {"IQ3_XS", "IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}
)  # fmt: skip


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


# Types of single tensors, by ggml's names. With others that ggml names (integers, F64, Q8_K, …) its quantizer ends
# the process.
TensorType = Annotated[
    Literal[
        "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
        "MXFP4", "NVFP4", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "TQ1_0",
        "IQ1_M", "IQ1_S", "Q1_0",
    ],
    BeforeValidator(_upper),
]  # fmt: skip
# No importance is computed for embeddings and output head, and these types end the process without it.
EdgeTensorType = Annotated[
    Literal[
        "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
        "MXFP4", "NVFP4", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "TQ2_0", "TQ1_0", "Q1_0",
    ],
    BeforeValidator(_upper),
]  # fmt: skip
TENSORS_NEED_MATRIX: Final = frozenset({"IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})


# What the built-in converter knows. A test holds it equal to the converter's own table.
ARCHITECTURES: Final = frozenset(
    {
        "Gemma2ForCausalLM", "Gemma3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM",
        "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
    }
)  # fmt: skip


class GgufParams(MethodParams):
    quantization: GgufType = Field(
        default="Q4_K_M",
        description="llama.cpp's name of the mix. A tensor whose rows the type cannot divide falls back to "
        "another type; the artifact's tensor_types tell what was really stored. TQ1_0, TQ2_0 and Q1_0 are for models "
        "trained with ternary or binary weights.",
    )
    importance_matrix: str = Field(
        default="auto",
        description="auto weighs rounding errors by the inputs that calibration text causes, for types below "
        "8 bits; none takes all columns for equal; the id of an uploaded file (file-…) takes a matrix of "
        f"llama-imatrix's. {', '.join(sorted(NEEDS_MATRIX))} cannot be made without one.",
    )
    calibration: CalibrationParams = Field(
        default=CalibrationParams(), description="The text from which the importance matrix is computed."
    )
    output_type: EdgeTensorType | None = Field(
        default=None, description="Type of the output head in place of the mix's, such as q8_0."
    )
    embedding_type: EdgeTensorType | None = Field(
        default=None, description="Type of the token embeddings in place of the mix's."
    )
    tensor_types: dict[str, TensorType] = Field(
        default={},
        description="Types by regular expression over GGUF tensor names, such as "
        r'`{"blk\.[01]\.ffn_down": "q8_0"}`; a weight takes the type of the first expression found in its name.',
    )
    split_bytes: int | None = Field(
        default=None,
        ge=1024,
        description="Size limit of one file; a larger model becomes model-00001-of-0000N.gguf and so on. A tensor "
        "beyond it has a file to itself.",
    )

    @field_validator("importance_matrix")
    @classmethod
    def _known_matrix(cls, value: str) -> str:
        if value not in ("auto", "none") and not FILE_ID.fullmatch(value):
            raise ValueError("use auto, none, or the id of an uploaded file (POST /v1/files, purpose imatrix)")
        return value

    @field_validator("tensor_types")
    @classmethod
    def _valid_expressions(cls, value: dict[str, str]) -> dict[str, str]:
        for expression in value:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"{expression!r} is no regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _matrix_where_needed(self) -> GgufParams:
        needing: list[str] = [self.quantization] if self.quantization in NEEDS_MATRIX else []
        needing += [type_name for type_name in self.tensor_types.values() if type_name in TENSORS_NEED_MATRIX]
        if self.importance_matrix == "none" and needing:
            raise ValueError(
                f"llama.cpp makes {needing[0]} only with an importance matrix and importance_matrix is 'none'; "
                f"set it to 'auto' or to an uploaded matrix, or choose a larger type such as Q3_K_M"
            )
        return self

    @property
    def overrides_types(self) -> bool:
        return bool(self.output_type or self.embedding_type or self.tensor_types)

    def calibration_wanted(self) -> CalibrationParams | None:
        weighed = self.quantization in WEIGHED or TENSORS_NEED_MATRIX & set(self.tensor_types.values())
        return self.calibration if self.importance_matrix == "auto" and weighed else None


def _label(params: GgufParams) -> str:
    """The mix, what embeddings and output are kept in, and a digest of the expressions."""
    parts = [f"gguf-{params.quantization}"]
    parts += [f"out-{params.output_type}"] if params.output_type else []
    parts += [f"emb-{params.embedding_type}"] if params.embedding_type else []
    if params.tensor_types:
        digest = hashlib.sha256(json.dumps(list(params.tensor_types.items())).encode()).hexdigest()
        parts.append(f"tt-{digest[:6]}")
    return "-".join(parts)


SPEC = MethodSpec(
    name="gguf",
    summary="llama.cpp's formats, Q4_K_M first",
    params=GgufParams,
    output=ArtifactFormat.GGUF,
    devices=frozenset({Device.CPU}),
    label=_label,
    bits=lambda params: BITS[params.quantization],
    packages=("gguf", "llama-cpp-python", "torch", "transformers"),
    architectures=ARCHITECTURES,
    widened_by="gguf_converter",
)
