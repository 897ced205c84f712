"""What a comparison is asked for, and the sets of methods that have a name."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, model_validator

from app.domain.evaluation import MeasuringOptions, Metric, Name
from app.domain.quantization.catalog import CATALOG

MAX_METHODS: Final = 32

# Methods without a group size get the largest one that divides the model's rows. What the catalog does not have is
# left out.
METHOD_SETS: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "seed-table": (
        {"type": "none", "dtype": "fp16"},
        {"type": "none", "dtype": "bf16"},
        {"type": "bitsandbytes", "quantization": "int8"},
        {"type": "bitsandbytes", "quantization": "nf4"},
        {"type": "gptq", "bits": 4},
        {"type": "awq"},
        {"type": "gguf", "quantization": "Q4_K_M"},
        {"type": "fp8"},
        {"type": "qat"},
    ),
}


class ComparisonRequest(MeasuringOptions, extra="forbid", frozen=True, populate_by_name=True):
    """The body of POST /v1/comparisons: either `methods` or `set`."""

    model: Name = Field(description="An original, as quantization jobs take it.")
    methods: tuple[dict[str, Any], ...] = Field(
        default=(), max_length=MAX_METHODS, description="As `method` of a quantization job, each."
    )
    method_set: str | None = Field(default=None, alias="set", description=f"{', '.join(METHOD_SETS)}.")
    metrics: tuple[Metric, ...] = Field(default=tuple(Metric), min_length=1, description="As for evaluations.")
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="Where models are measured; auto takes a GPU where a worker has one."
    )

    @model_validator(mode="after")
    def _names_methods(self) -> ComparisonRequest:
        if bool(self.methods) == (self.method_set is not None):
            raise ValueError(f"give either methods, a list of at least one, or set, one of {', '.join(METHOD_SETS)}")
        if self.method_set is not None and self.method_set not in METHOD_SETS:
            raise ValueError(f"there is no set {self.method_set!r}; there is {', '.join(METHOD_SETS)}")
        return self

    @property
    def chosen_methods(self) -> tuple[dict[str, Any], ...]:
        if self.method_set is None:
            return self.methods
        return tuple(method for method in METHOD_SETS[self.method_set] if method["type"] in CATALOG)

    @property
    def measuring(self) -> dict[str, Any]:
        """What an evaluation of each row takes of it."""
        return self.model_dump(mode="json", include=set(MeasuringOptions.model_fields))
