"""Quality contracts: terms that a model must meet as measured, and what a search for one tries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from app.domain.errors import BitmillError, InvalidParameter
from app.domain.quantization.catalog import parse_method

AUTO: Final = "auto"
MAX_CANDIDATES: Final = 32

# What `auto` tries, the smallest by prediction first. Methods without a group size get the largest that fits.
CANDIDATES: Final[tuple[dict[str, Any], ...]] = (
    {"type": "gguf", "quantization": "Q3_K_M"},
    {"type": "gguf", "quantization": "IQ4_XS"},
    {"type": "gguf", "quantization": "Q4_K_M"},
    {"type": "gguf", "quantization": "Q5_K_M"},
    {"type": "gguf", "quantization": "Q6_K"},
    {"type": "gguf", "quantization": "Q8_0"},
    {"type": "bitsandbytes", "quantization": "nf4", "double_quant": True},
    {"type": "int4"},
    {"type": "gptq", "bits": 4},
    {"type": "fp8"},
    {"type": "int8"},
    {"type": "none", "dtype": "bf16"},
)
# A prediction that lies beyond a term by more than these factors rules a candidate out unmade. Estimates of weights
# are within two percent, those of memory within fifteen.
SIZE_MARGIN: Final = 1.05
MEMORY_MARGIN: Final = 1.3


class Contract(BaseModel, extra="forbid", frozen=True):
    """Terms that a model must meet."""

    max_kl_divergence: float | None = Field(default=None, gt=0, description="Mean, in nats per token.")
    max_perplexity_ratio: float | None = Field(default=None, ge=1, description="The model's by the original's.")
    min_top1_agreement: float | None = Field(default=None, gt=0, le=1, description="Share of tokens.")
    max_memory_bytes: int | None = Field(default=None, gt=0, description="Of the engine that serves it.")
    max_size_bytes: int | None = Field(default=None, gt=0, description="On disk, all files.")
    min_decode_tokens_per_second: float | None = Field(default=None, gt=0, description="At one request at a time.")

    @property
    def terms(self) -> dict[str, float]:
        return self.model_dump(include=set(Contract.model_fields), exclude_none=True)


class JobContract(Contract, extra="forbid", frozen=True):
    """The `contract` of a quantization job."""

    device: Literal["auto", "cpu", "gpu"] = Field(default="auto", description="Where the terms are measured.")

    @model_validator(mode="after")
    def _has_terms(self) -> JobContract:
        if not self.terms:
            raise ValueError(f"give at least one term of {', '.join(Contract.model_fields)}")
        return self

    @property
    def needs_serving(self) -> bool:
        return self.max_memory_bytes is not None or self.min_decode_tokens_per_second is not None


class AutoMethod(BaseModel, extra="forbid", frozen=True):
    """The method of a job that searches: `candidates` in place of the built-in list."""

    type: Literal["auto"] = AUTO
    candidates: tuple[dict[str, Any], ...] = Field(default=(), max_length=MAX_CANDIDATES)

    @property
    def tried(self) -> tuple[dict[str, Any], ...]:
        return self.candidates or CANDIDATES


def parse_auto(method: dict[str, Any]) -> AutoMethod:
    """Raises UnknownMethod or InvalidParameter, for a candidate with its place in the list."""
    try:
        parsed = AutoMethod.model_validate(method)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidParameter(
            f"method.{field}: {first['msg']}; method 'auto' takes candidates, a list of methods",
            param=f"method.{field}",
        ) from error
    for number, candidate in enumerate(parsed.candidates):
        try:
            parse_method(candidate)
        except BitmillError as error:
            error.param = f"method.candidates.{number}" + (error.param or "method").removeprefix("method")
            raise
    return parsed


# What each term bounds.
MEASURED_AS: Final = {
    "max_kl_divergence": "kl_divergence",
    "max_perplexity_ratio": "perplexity_ratio",
    "min_top1_agreement": "top1_agreement",
    "max_memory_bytes": "memory_bytes",
    "max_size_bytes": "size_bytes",
    "min_decode_tokens_per_second": "decode_tokens_per_second",
}


def broken_terms(contract: Contract, values: Mapping[str, float | None]) -> list[str]:
    """The terms that known values break, in words. `values` are by the names in MEASURED_AS."""
    found = []
    for name, bound in contract.terms.items():
        value = values.get(MEASURED_AS[name])
        if value is not None and (value > bound if name.startswith("max_") else value < bound):
            found.append(f"{name} is {figure(bound)}, and it has {figure(value)}")
    return found


def figure(value: float) -> str:
    """Bytes in full, with thousands set apart; measured figures to six digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def unknown_terms(contract: Contract, values: Mapping[str, float | None]) -> list[str]:
    return [name for name in contract.terms if values.get(MEASURED_AS[name]) is None]
