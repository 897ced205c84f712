"""From a user's expressions to the tensors that they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from app.domain.errors import InvalidParameter

# llama.cpp's quantizer ends the process when it has to make these without an importance, and none is computed for
# embeddings and output head.
CRASH_UNWEIGHED: Final = frozenset({"IQ1_M", "IQ1_S", "IQ2_XS", "IQ2_XXS"})
UNWEIGHED: Final = frozenset({"token_embd.weight", "output.weight"})


def match_tensors(expressions: Mapping[str, str], matrices: Iterable[str]) -> dict[str, str]:
    """The type of each weight matrix in whose name an expression is found; the first one found counts.

    `matrices` are the GGUF names of all tensors that can be quantized. Raises InvalidParameter for an expression
    without a match, and for a type that the matched tensor cannot have.
    """
    names = list(matrices)
    chosen: dict[str, str] = {}
    for expression, type_name in expressions.items():
        matching = [name for name in names if re.search(expression, name)]
        if not matching:
            raise _refused(f"{expression!r} is found in no weight's name; names are such as {', '.join(names[:4])}")
        for name in matching:
            chosen.setdefault(name, type_name)
    for name, type_name in chosen.items():
        if name in UNWEIGHED and type_name in CRASH_UNWEIGHED:
            raise _refused(f"{name} cannot be {type_name}, which needs an importance; choose IQ2_S or larger")
    return chosen


def _refused(message: str) -> InvalidParameter:
    return InvalidParameter(f"tensor_types: {message}", param="method.tensor_types")
