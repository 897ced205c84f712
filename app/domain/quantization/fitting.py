"""A method with the group size that suits a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from app.domain.errors import IncompatibleModel, InvalidParameter
from app.domain.quantization.catalog import parse_method
from app.domain.quantization.spec import MethodParams, MethodSpec

GROUP_SIZES: Final = (128, 64, 32, 16)


def fit_groups(method: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[MethodSpec, MethodParams]:
    """The method with the largest group size that divides the model's rows.

    A group size that was given stays, and so does the method's own default where none fits: `require_groups` then
    says what is wrong. `shapes` are those of the checkpoint's tensors, by name. Raises UnknownMethod or
    InvalidParameter.
    """
    spec, params = parse_method(method)
    if "group_size" not in spec.params.model_fields or "group_size" in method:
        return spec, params
    for size in GROUP_SIZES:
        try:
            _, fitted = parse_method(method | {"group_size": size})
            spec.require_groups(fitted, shapes)
        except (IncompatibleModel, InvalidParameter):  # a size that the method does not have
            continue
        return spec, fitted
    return spec, params
