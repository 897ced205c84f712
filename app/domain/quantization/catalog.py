"""The catalog of methods: one readable dict, and the parsing of a request's `method` object."""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError

from app.domain.errors import InvalidParameter, UnknownMethod
from app.domain.quantization.methods import (
    autoround,
    awq,
    bitsandbytes,
    fp4,
    fp8,
    gguf,
    gptq,
    hqq,
    int4,
    int8,
    none,
    qat,
)
from app.domain.quantization.spec import MethodParams, MethodSpec

CATALOG: Final[dict[str, MethodSpec]] = {
    "none": none.SPEC,
    "bitsandbytes": bitsandbytes.SPEC,
    "fp8": fp8.SPEC,
    "fp4": fp4.SPEC,
    "int8": int8.SPEC,
    "int4": int4.SPEC,
    "gptq": gptq.SPEC,
    "awq": awq.SPEC,
    "autoround": autoround.SPEC,
    "hqq": hqq.SPEC,
    "gguf": gguf.SPEC,
    "qat": qat.SPEC,
}


def find_method(name: str) -> MethodSpec:
    """Raises UnknownMethod."""
    if name not in CATALOG:
        raise UnknownMethod(f"unknown method {name!r}; known are {', '.join(CATALOG)}", param="method.type")
    return CATALOG[name]


def parse_method(method: dict[str, Any]) -> tuple[MethodSpec, MethodParams]:
    """Reads `{"type": ..., **parameters}`. Raises UnknownMethod or InvalidParameter."""
    values = dict(method)
    name = values.pop("type", None)
    if not isinstance(name, str):
        raise UnknownMethod("method.type is missing; give one of " + ", ".join(CATALOG), param="method.type")
    spec = find_method(name)
    try:
        return spec, spec.params.model_validate(values)
    except ValidationError as error:
        raise _invalid_parameter(name, spec, error) from error


def dump_method(spec: MethodSpec, params: MethodParams) -> dict[str, Any]:
    """The inverse of `parse_method`, with every default filled in."""
    return {"type": spec.name, **params.model_dump(mode="json")}


def _invalid_parameter(name: str, spec: MethodSpec, error: ValidationError) -> InvalidParameter:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    param = f"method.{field}" if field else "method"
    if first["type"] == "extra_forbidden":
        known = ", ".join(spec.params.model_fields) or "none"
        return InvalidParameter(f"method {name!r} has no parameter {field!r}; it has {known}", param=param)
    if first["type"] == "value_error":  # one of our own, which says it all
        return InvalidParameter(f"{param}: {first['ctx']['error']}", param=param)
    given = f", not {first['input']!r}" if field else ""
    return InvalidParameter(f"{param}: {first['msg']}{given}", param=param)
